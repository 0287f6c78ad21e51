// What the page would ask now, compared with what a run was asked.

import { inputsNow } from "./core/page.js";

/** @typedef {import("./trace/run.js").Run} Run */

/** @param {any} policy of a run @param {any} arm of the settings */
function samePolicy(policy, arm) {
  return policy.name === arm.policy && Object.entries(policy).every(([key, value]) => key === "name" || (arm[key] ?? null) === (value ?? null));
}

/** @param {any} start @param {any} settings */
function sameSettings(start, settings) {
  const { arms, max_new_tokens: tokens, mode, batch, temperature, top_p: topP, seed } = settings;
  const sampled = temperature > 0;
  return arms.length === start.arms.length && arms.every((/** @type {any} */ arm, /** @type {number} */ index) => samePolicy(start.arms[index].policy, arm)) &&
    tokens === start.limit && mode === start.mode && batch === start.batch && temperature === start.temperature &&
    (!sampled || (topP === start.top_p && (seed === null || seed === start.seed)));
}

/** Which inputs differ from those of a run, in words. @param {Run} run @param {import("./core/page.js").Inputs | null} now @returns {string[]} */
export function changedSince(run, now = inputsNow()) {
  if (!now || !run.start) return [];
  const { picture_id: id, link } = run.meta, changed = [];
  if (!((id && id === now.id) || (link && link === now.link) || (!id && !link))) changed.push("picture");
  if (run.start.turn > 1) return changed; // asked below the answers before, with their settings
  if (now.question.trim() !== run.start.question) changed.push("question");
  if (!sameSettings(run.start, now.settings)) changed.push("settings");
  return changed;
}
