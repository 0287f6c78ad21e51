// Shared by all components: DOM building without markup strings, number formats, theme. Text only ever enters through textContent.

function h(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function put(node, text) {
  const value = String(text);
  if (node && node.textContent !== value) node.textContent = value;
}

function show(node, visible) {
  if (node && node.hidden === Boolean(visible)) node.hidden = !visible;
}

const DASH = "–";

function fixed(value, digits) {
  return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

function formatMs(ms) {
  if (ms === null || ms === undefined || !isFinite(ms)) return DASH;
  if (ms >= 10000) return `${fixed(ms / 1000, 1)} s`;
  if (ms >= 100) return `${fixed(ms, 0)} ms`;
  return ms >= 10 ? `${fixed(ms, 1)} ms` : `${fixed(ms, 2)} ms`;
}

function formatBytes(bytes) {
  if (bytes === null || bytes === undefined || !isFinite(bytes)) return DASH;
  const size = Math.abs(bytes);
  const [unit, scale] = size >= 2 ** 30 ? ["GiB", 2 ** 30] : size >= 2 ** 20 ? ["MiB", 2 ** 20] : ["KiB", 2 ** 10];
  const value = bytes / scale;
  return `${fixed(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2)} ${unit}`;
}

function formatPercent(share) {
  if (share === null || share === undefined || !isFinite(share)) return DASH;
  return `${fixed(share * 100, share < 0.0995 ? 1 : 0)} %`;
}

function formatRate(perSecond) {
  if (!perSecond || !isFinite(perSecond)) return DASH;
  return `${fixed(perSecond, perSecond >= 100 ? 0 : 1)} tok/s`;
}

function isDark() {
  return document.body.classList.contains("dark");
}

function onTheme(callback) {
  const observer = new MutationObserver(callback);
  observer.observe(document.body, { attributes: true, attributeFilter: ["class"] });
}

function variable(node, name) {
  return getComputedStyle(node).getPropertyValue(name).trim();
}

// One style sheet serves all components of the page.
function mount(element) {
  if (!document.getElementById("avl-style")) {
    const style = document.createElement("style");
    style.id = "avl-style";
    style.textContent = STYLE;
    document.head.appendChild(style);
  }
  const root = element.querySelector(".avl") || element;
  // MARKUP is a constant of this script, the only string that ever becomes markup
  root.innerHTML = MARKUP;
  return root;
}

function debounce(callback, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...values), ms);
  };
}

// What the address asks for; in a tab that was loaded anew, what it had before.
function openingLink() {
  return new URLSearchParams((loadedAgain() && recall("avl-link")) || location.search);
}

function loadedAgain() {
  const [entry] = performance.getEntriesByType("navigation");
  return Boolean(entry) && ["reload", "back_forward"].includes(entry.type);
}

// a tab's memory; a browser may forbid it
function recall(key) {
  try { return sessionStorage.getItem(key) || ""; } catch { return ""; }
}

function remember(key, value) {
  try { sessionStorage.setItem(key, value); } catch { /* it is a convenience */ }
}
