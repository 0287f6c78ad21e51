// The browser tab: what its address asks for, and what it remembers over a reload.

/** Whether the tab was loaded anew, or came back. */
export function loadedAgain() {
  const [entry] = performance.getEntriesByType("navigation");
  return Boolean(entry) && ["reload", "back_forward"].includes(/** @type {any} */ (entry).type);
}

/** What the address asks for; in a tab that was loaded anew, what it had before. */
export function openingLink() {
  return new URLSearchParams((loadedAgain() && recall("avl-link")) || location.search);
}

// a browser may forbid a tab its memory

/** @param {string} key */
export function recall(key) {
  try { return sessionStorage.getItem(key) || ""; } catch { return ""; }
}

/** @param {string} key @param {string} value */
export function remember(key, value) {
  try { sessionStorage.setItem(key, value); } catch { /* a convenience */ }
}

// over tabs and visits

/** @param {string} key */
export function recallAlways(key) {
  try { return localStorage.getItem(key) || ""; } catch { return ""; }
}

/** @param {string} key @param {string} value */
export function rememberAlways(key, value) {
  try { localStorage.setItem(key, value); } catch { /* a convenience */ }
}

/**
 * Hand a file to the visitor.
 * @param {string} name
 * @param {string} type
 * @param {BlobPart} content
 */
export function save(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
