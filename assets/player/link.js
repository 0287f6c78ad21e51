// The link to what is on the page, and what a link asks of the player: layer, step, policy and view.

show($.copy, !(props.value && props.value.source === "report")); // a report has no server to link to

$.copy.addEventListener("click", async () => {
  const parameters = new URLSearchParams(window.avlLink ? window.avlLink() : "");
  parameters.set("l", String(view.layer));
  if (view.run && view.run.start) parameters.set("f", String(view.focus));
  if (view.mode !== "sets") parameters.set("v", view.mode);
  if (view.run && !view.follow) parameters.set("t", String(currentStep()));
  const address = `${location.origin}${location.pathname}?${parameters}`;
  try {
    await navigator.clipboard.writeText(address);
    put($.copy, "Copied");
  } catch {
    // no permission (a frame, plain http): the address bar can be copied by hand
    history.replaceState(null, "", address);
    put($.copy, "See address bar");
  }
  setTimeout(() => put($.copy, "Copy link"), 2500);
});

const wanted = openingLink();
const wantedNumber = (name) => (/^\d{1,4}$/.test(wanted.get(name) || "") ? Number(wanted.get(name)) : null);
if (wantedNumber("l") !== null) { view.layer = wantedNumber("l"); view.touchedLayer = true; }
view.wantedFocus = wantedNumber("f");
view.wantedStep = wantedNumber("t");
if ([...$.view.options].some((option) => option.value === wanted.get("v"))) view.mode = $.view.value = wanted.get("v");
