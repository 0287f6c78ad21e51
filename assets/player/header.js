// Title, what runs where, and what the numbers of this page can and cannot show.

import { mount, partsOf, put, show } from "./core/dom.js";
import { fixed } from "./core/format.js";
import { offer, tell } from "./core/page.js";
import { TEXT } from "./text.js";

const root = mount(element, STYLE, `<a class="avl-skip" href="#avl-run">${TEXT.skipToRun}</a>
<a class="avl-skip" href="#avl-player">${TEXT.skipToAnswers}</a>
<h1 data-id="title"></h1>
<p class="avl-lede">${TEXT.lede}</p>
<p class="avl-machine-line"><span data-id="machine"></span><br><span data-id="idle"></span></p>
<p class="avl-honest" data-id="honest"></p>`);
const $ = partsOf(root), about = props.about;
put($.title, about.title);
put($.machine, [about.name, about.dtype, about.device, about.machine].filter(Boolean).join(" · "));
put($.honest, about.notes.join(" "));
show($.honest, about.notes.length > 0);

// readings between runs; other components hear of the free memory
function showIdle() {
  const now = props.value;
  if (!now || typeof now !== "object") return;
  const device = now.used_bytes === null ? TEXT.noGpu(now.rss_bytes) : TEXT.deviceMemory(now.used_bytes, now.total_bytes);
  put($.idle, [device, now.power_watts === null ? "" : `${fixed(now.power_watts, 0)} W`].filter(Boolean).join(" · "));
  offer("avlFreeBytes", now.free_bytes);
  tell("idle");
}
watch("value", showIdle);
showIdle();

// links within the page move the keyboard too, not only the view
for (const link of root.querySelectorAll(".avl-skip")) {
  link.addEventListener("click", (/** @type {Event} */ event) => {
    event.preventDefault();
    const target = /** @type {HTMLElement | null} */ (document.querySelector(link.getAttribute("href")));
    if (!target) return;
    if (target.tabIndex < 0) target.tabIndex = -1;
    target.focus();
    target.scrollIntoView({ block: "start" });
  });
}
