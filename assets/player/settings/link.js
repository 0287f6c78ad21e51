// Settings as an address, and back: each arm's policy and parameters, and what is generated. Anything else in it is ignored.

import { defaults } from "./arm.js";

export const SIDES = ["a", "b", "c", "d", "e", "f", "g", "h"];

/** Name of a parameter in a link: the second arm is usually A-VL, and its letters stand alone. @param {any} arm @param {number} index @param {string} key */
function nameOf(arm, index, key) { return arm.policy === "AVL" && index === 1 ? key : `${SIDES[index]}.${key}`; }

/** @param {URLSearchParams} link @param {string} name @param {number} low @param {number} high */
function whole(link, name, low, high) {
  const text = link.get(name) || "";
  return /^\d{1,5}$/.test(text) ? Math.max(low, Math.min(high, Number(text))) : null;
}

/** @param {URLSearchParams} link @param {string} name @param {number} low @param {number} high */
function decimal(link, name, low, high) {
  const text = link.get(name) || "";
  return /^\d(\.\d{1,4})?$/.test(text) ? Math.max(low, Math.min(high, Number(text))) : null;
}

/** A parameter's value in a link, or undefined where there is none that could be valid. @param {URLSearchParams} link @param {string} name @param {any} parameter */
function linked(link, name, { low, high, step, off, choices }) {
  if (choices.length) return choices.find((/** @type {string} */ choice) => choice === link.get(name));
  if (off && link.get(name) === "off") return null;
  const value = whole(link, name, low, high);
  return value === null ? undefined : value - (value - low) % step;
}

/** Settings with what a link says. @param {any} settings @param {URLSearchParams} link @param {any} catalog @param {{ max_tokens: number, max_arms?: number }} about @param {string[]} modes */
export function fromLink(settings, link, catalog, about, modes) {
  const made = JSON.parse(JSON.stringify(settings)), most = Math.min(SIDES.length, about.max_arms || 2);
  SIDES.slice(0, most).forEach((side, index) => {
    const name = link.get(side) || "";
    if (Object.hasOwn(catalog, name) && index <= made.arms.length) made.arms[index] = defaults(catalog, name);
    const arm = made.arms[index];
    if (!arm) return;
    for (const parameter of catalog[arm.policy].parameters) {
      const value = linked(link, nameOf(arm, index, parameter.key), parameter);
      if (value !== undefined) arm[parameter.key] = value;
    }
    if (arm.policy === "AVL" && arm.C !== null) arm.C = Math.min(arm.C, arm.S);
  });
  made.max_new_tokens = whole(link, "n", 1, about.max_tokens) ?? made.max_new_tokens;
  made.batch = whole(link, "B", 1, 256) ?? made.batch;
  made.repeats = whole(link, "r", 1, 20) ?? made.repeats;
  made.scores = made.scores || link.get("scores") === "1";
  if ("agreement" in made) made.agreement = made.agreement || link.get("agreement") === "1";
  if (modes.includes(link.get("mode") || "")) made.mode = link.get("mode");
  made.temperature = decimal(link, "temp", 0, 2) ?? made.temperature;
  made.top_p = decimal(link, "top", 0.01, 1) ?? made.top_p;
  if (/^\d{1,10}$/.test(link.get("seed") || "")) made.seed = Math.min(2 ** 31 - 1, Number(link.get("seed")));
  else if (link.get("seed") === "random") made.seed = null;
  return made;
}

/** @param {any} settings @param {any} catalog @param {string} picture its part of the link @param {string} question */
export function toLink(settings, catalog, picture, question) {
  const out = new URLSearchParams(picture);
  if (question.trim()) out.set("q", question.trim());
  settings.arms.forEach((/** @type {any} */ arm, /** @type {number} */ index) => {
    out.set(SIDES[index], arm.policy);
    for (const parameter of catalog[arm.policy].parameters) {
      const value = arm[parameter.key];
      if (parameter.choices.length && value === parameter.default) continue;
      out.set(nameOf(arm, index, parameter.key), value === null ? "off" : String(value));
    }
  });
  out.set("n", String(settings.max_new_tokens));
  out.set("B", String(settings.batch));
  if (settings.repeats > 1) out.set("r", String(settings.repeats));
  if (settings.scores) out.set("scores", "1");
  if (settings.agreement) out.set("agreement", "1");
  if (settings.mode !== "race") out.set("mode", settings.mode);
  if (settings.temperature) {
    out.set("temp", String(settings.temperature));
    out.set("top", String(settings.top_p));
    out.set("seed", settings.seed === null ? "random" : String(settings.seed));
  }
  return out.toString();
}
