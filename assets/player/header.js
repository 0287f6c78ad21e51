// Title, what runs where, and what the numbers of this page can and cannot show.

const root = mount(element);
const about = props.about;
const at = (id) => root.querySelector(`[data-id="${id}"]`);
put(at("title"), about.title);
put(at("machine"), [about.name, about.dtype, about.device, about.machine].filter(Boolean).join(" · "));
put(at("honest"), about.notes.join(" "));

// readings between runs; other components hear of the free memory
function showIdle() {
  const now = props.value;
  if (!now || typeof now !== "object") return;
  const device = now.used_bytes === null ? `No NVIDIA GPU · process memory ${formatBytes(now.rss_bytes)}` : `${formatBytes(now.used_bytes)} of ${formatBytes(now.total_bytes)} of device memory in use`;
  put(at("idle"), [device, now.power_watts === null ? "" : `${fixed(now.power_watts, 0)} W`].filter(Boolean).join(" · "));
  window.avlFreeBytes = now.free_bytes;
  document.dispatchEvent(new CustomEvent("avl:idle"));
}
watch("value", showIdle);
showIdle();
show(at("honest"), about.notes.length > 0);

// links within the page move the keyboard too, not only the view
for (const link of root.querySelectorAll(".avl-skip")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const target = document.querySelector(link.getAttribute("href"));
    if (!target) return;
    if (target.tabIndex < 0) target.tabIndex = -1;
    target.focus();
    target.scrollIntoView({ block: "start" });
  });
}
