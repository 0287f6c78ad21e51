// What was asked: shown with every answer, and compared with what the page would ask now.

// the page's inputs: { question, link, id, settings }; a report has none
function inputsNow() {
  return window.avlInputs ? window.avlInputs() : null;
}

function samePolicy(policy, arm) {
  return policy.name === arm.policy && Object.entries(policy).every(([key, value]) => key === "name" || (arm[key] ?? null) === (value ?? null));
}

function sameSettings(start, settings) {
  const { arms, max_new_tokens: tokens, mode, batch, temperature, top_p: topP, seed } = settings;
  const sampled = temperature > 0;
  return arms.length === start.arms.length && arms.every((arm, index) => samePolicy(start.arms[index].policy, arm)) && tokens === start.limit &&
    mode === start.mode && batch === start.batch && temperature === start.temperature &&
    (!sampled || (topP === start.top_p && (seed === null || seed === start.seed)));
}

// which inputs differ from those of a run: words for people
function changedSince(run, now = inputsNow()) {
  if (!now || !run.start) return [];
  const { picture_id: id, link } = run.meta, changed = [];
  if (!((id && id === now.id) || (link && link === now.link) || (!id && !link))) changed.push("picture");
  if (now.question.trim() !== run.start.question) changed.push("question");
  if (!sameSettings(run.start, now.settings)) changed.push("settings");
  return changed;
}

function picturesOf(run) {
  const names = Array.isArray(run.meta.pictures) ? run.meta.pictures.map(String) : [];
  return names.length ? names.join(", ") : run.start.images.length > 1 ? `${run.start.images.length} pictures` : "";
}

function samplingOf(start) {
  return start.temperature ? `temperature ${start.temperature}, top-p ${start.top_p}, seed ${start.seed ?? DASH}` : "greedy";
}

const PHASES = { queued: "until your run starts", running: "until your run starts", stopping: "until your run starts" };

function drawAsked() {
  const run = view.run, start = run && run.start;
  show($.askedPanel, Boolean(start));
  if (!start) return;
  const old = view.stream !== null && view.stream !== view.id; // another run was asked for and has not begun
  const waiting = old && PHASES[view.state], failed = view.state === "refused" || (old && !waiting);
  const changed = changedSince(run);
  put($.askedWord, waiting || failed || changed.length ? "Answers to:" : "Asked:");
  put($.asked, start.question);
  put($.askedFacts, [
    picturesOf(run), start.mode === "single" ? "" : start.mode, `${start.limit} new tokens at most`, start.batch > 1 ? `batch ${start.batch}, row 1 shown` : "", samplingOf(start),
    `${start.n_image} image + ${start.n_text} text tokens`,
  ].filter(Boolean).join(" · "));
  const list = changed.length > 1 ? `${changed.slice(0, -1).join(", ")} and ${changed[changed.length - 1]}` : changed[0];
  const which = view.source === "recorded" ? "recorded" : "previous";
  put($.stale, waiting ? `These are the ${which} answers, ${waiting}.` : failed ? `These are the ${which} answers: nothing new was run.` :
    changed.length ? `You changed the ${list} since. Press Run for new answers.` : "");
  root.classList.toggle("avl-old", Boolean(waiting || failed || changed.length));
}

document.addEventListener("avl:edited", debounce(() => { drawAsked(); setStatus(); }, 60));
