// What the components of the page tell one another: header, gallery, settings and player are scripts of their own.
// Names on window are what tests and the curious see too.

/** @typedef {{ link: string, id: string }} Picture names the pictures in an address, and tells them from others */
/** @typedef {{ question: string, settings: any, link: string, id: string }} Inputs what Run would ask */

/** @type {any} */
const shared = window;

/** @param {"idle" | "prompt" | "edited" | "stop"} name */
export function tell(name) {
  document.dispatchEvent(new CustomEvent(`avl:${name}`));
}

/** @param {"idle" | "prompt" | "edited" | "stop"} name @param {() => void} callback */
export function hear(name, callback) {
  document.addEventListener(`avl:${name}`, callback);
}

/** Say something that others ask for. @param {"avlPicture" | "avlQuestion" | "avlLink" | "avlInputs" | "avlPrompt" | "avlFreeBytes" | "avlPlayer" | "avlApply" | "avlThen"} name @param {any} value */
export function offer(name, value) {
  shared[name] = value;
}

/** Size of the prompt of the chosen pictures, null while it is unknown. */
export const promptSize = () => shared.avlPrompt || null;

/** Free memory of the device in bytes, 0 while unknown. */
export const freeBytes = () => shared.avlFreeBytes || 0;

/** @returns {Picture | null} */
export const picture = () => (shared.avlPicture ? shared.avlPicture() : null);

export const question = () => (shared.avlQuestion ? String(shared.avlQuestion()) : "");

/** The inputs as an address; a report has none. */
export const linkOfInputs = () => (shared.avlLink ? String(shared.avlLink()) : "");

/** The page's inputs, null in a report and while the page loads. @returns {Inputs | null} */
export const inputsNow = () => (shared.avlInputs ? shared.avlInputs() : null);

/** Put a policy into the settings; the number of its box, 0 where there are no settings. @param {any} policy name and parameters @returns {number} */
export const applyPolicy = (policy) => (shared.avlApply ? shared.avlApply(policy) : 0);

/** The question that was planned to follow another one, once. @param {string} asked @returns {string} empty where none was */
export function planned(asked) {
  const then = shared.avlThen;
  shared.avlThen = null;
  return then && then.after === asked ? String(then.question) : "";
}
