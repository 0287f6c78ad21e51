// Two runs side by side: the settings that differ, and each policy of both.

/** @typedef {Record<string, any>} Summary of a run, as avl/ui/history.py writes it */

const SETTINGS = ["question", "pictures", "image_tokens", "text_tokens", "mode", "batch", "limit", "temperature", "seed", "repeats"];

const words = (/** @type {any} */ value) => (Array.isArray(value) ? value.join(", ") : value ?? null);

/** Keys whose values differ. @param {string[]} keys @param {Record<string, any>} a @param {Record<string, any>} b @returns {[string, any, any][]} */
function differing(keys, a, b) {
  return keys.map((key) => /** @type {[string, any, any]} */ ([key, words(a[key]), words(b[key])])).filter(([, one, other]) => one !== other);
}

/**
 * @param {Summary} a
 * @param {Summary} b
 * @returns {{ settings: [string, any, any][], policies: { title: string, a: any, b: any, parameters: [string, any, any][] }[] }} an arm is null where a run lacks the policy
 */
export function comparison(a, b) {
  const left = [...(b.arms || [])], policies = [];
  for (const arm of a.arms || []) {
    const at = left.findIndex((other) => other.policy === arm.policy), twin = at < 0 ? null : left.splice(at, 1)[0];
    const keys = twin ? [...new Set([...Object.keys(arm.parameters), ...Object.keys(twin.parameters)])] : [];
    policies.push({ title: arm.title, a: arm, b: twin, parameters: twin ? differing(keys, arm.parameters, twin.parameters) : [] });
  }
  for (const arm of left) policies.push({ title: arm.title, a: null, b: arm, parameters: [] });
  return { settings: differing(SETTINGS, a, b), policies };
}
