// DOM building without markup strings from data: text only ever enters through textContent.

/**
 * Create an element.
 * @param {string} tag
 * @param {Record<string, any> | null} [attributes] "class", on… listeners, properties and attributes; null, undefined and false are left out
 * @param {...any} children nodes, strings, or lists of them
 * @returns {any}
 */
export function h(tag, attributes, ...children) {
  const node = /** @type {any} */ (document.createElement(tag));
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "class") node.className = value;
    else if (key in node && typeof value !== "string") node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(2)) if (child !== null && child !== undefined && child !== false) node.append(child);
  return node;
}

/** Set a node's text, only where it differs. @param {any} node @param {unknown} text */
export function put(node, text) {
  const value = String(text);
  if (!node || node.textContent === value) return;
  // another text in the same node is less work for the browser than another node
  if (node.childNodes.length === 1 && node.firstChild.nodeType === 3 && value) node.firstChild.data = value; else node.textContent = value;
}

/** Set an attribute, only where it differs. @param {any} node @param {string} name @param {string} value */
export function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/**
 * A box for a number that changes at every step: its layout stays within.
 * @param {string} tag
 * @param {string} [text]
 * @returns {{ node: any, words: any }} the words are written with put()
 */
export function cell(tag, text = "") {
  const words = h("span", {}, text);
  return { node: h(tag, { class: "avl-cell" }, words), words };
}

/** @param {any} node @param {unknown} visible */
export function show(node, visible) {
  if (node && node.hidden === Boolean(visible)) node.hidden = !visible;
}

/** The parts of a node by their data-id. @param {Element} node @returns {Record<string, any>} */
export function partsOf(node) {
  /** @type {Record<string, any>} */
  const parts = {};
  for (const part of node.querySelectorAll("[data-id]")) parts[/** @type {HTMLElement} */ (part).dataset.id || ""] = part;
  return parts;
}

/**
 * Mount a component: its style once a page, its constant markup. The markup is the only string that ever becomes HTML.
 * @param {Element} element what Gradio hands over
 * @param {string} style
 * @param {string} markup
 * @returns {any} the root
 */
export function mount(element, style, markup) {
  if (!document.getElementById("avl-style")) {
    const node = document.createElement("style");
    node.id = "avl-style";
    node.textContent = style;
    document.head.appendChild(node);
  }
  const root = element.querySelector(".avl") || element;
  root.innerHTML = markup;
  return root;
}

/**
 * @template {any[]} T
 * @param {(...values: T) => void} callback
 * @param {number} ms
 * @returns {(...values: T) => void}
 */
export function debounce(callback, ms) {
  /** @type {any} */
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => callback(...values), ms);
  };
}

export function isDark() {
  return document.body.classList.contains("dark");
}

/** @param {() => void} callback */
export function onTheme(callback) {
  new MutationObserver(callback).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}

/** The value of a CSS variable. @param {Element} node @param {string} name */
export function variable(node, name) {
  return getComputedStyle(node).getPropertyValue(name).trim();
}

export function calm() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
