// Names of what a run has, as people read them.

/** @typedef {import("./trace/run.js").Run} Run */
/** @typedef {import("./trace/run.js").Arm} Arm */

import { counted } from "./core/format.js";
import { TEXT } from "./text.js";

/** A policy's name, with its settings where another one has the same; beside arms that re-read, with which of the two it is. @param {Run} run @param {Arm} arm @returns {string} */
export function shortLabel(run, arm) {
  const again = Boolean(arm.spec.reread), twins = run.arms.filter((other) => other !== arm && other.spec.title === arm.spec.title && Boolean(other.spec.reread) === again);
  if (!twins.length && arm.spec.title && run.arms.some((other) => other.spec.reread)) return TEXT.turns.way(arm.spec.title, again);
  if (twins.some((other) => other.spec.label === arm.spec.label)) return `${arm.spec.label} (${arm.index + 1})`;
  return twins.length ? arm.spec.label : arm.spec.title || arm.spec.label;
}

/** Why an arm ended, in words. @param {string} reason @returns {string} */
export function endedBecause(reason) {
  return /** @type {Record<string, string>} */ (TEXT.reasons)[reason] || reason;
}

/** How far an arm is. @param {Readonly<import("./state.js").State>} state @param {Arm} arm @returns {string} */
export function progressOf({ run, state, now, eventAt }, arm) {
  if (!run) return "";
  if (arm.error) return TEXT.failed.toLowerCase();
  if (arm.prefill) return arm.end ? `${endedBecause(arm.end.reason)}, ${counted(arm.last + 1)}` : TEXT.tokenOf(arm.last + 1, run.start.limit);
  if (["done", "refused", "lost"].includes(state) || arm.end) return TEXT.notStarted;
  return run.prefilling === arm.index ? TEXT.prefill(Math.max(0, now - eventAt)) : TEXT.waiting;
}

/** What the device works on. @param {Run} run @param {number} waited ms since the latest event */
export function underWay({ arms, start, last, prefilling }, waited) {
  const isolated = start.mode === "isolated", which = (/** @type {number} */ at) => TEXT.policyOf(at + 1, arms.length);
  if (prefilling >= 0 && start.turn > 1 && !arms[prefilling].spec.reread) return TEXT.turns.extending(arms[prefilling].spec.new_tokens, waited, which(prefilling));
  if (prefilling >= 0) return TEXT.prefilling(waited, isolated || prefilling ? which(prefilling) : "");
  const at = isolated ? arms.findIndex((arm) => !arm.end) : -1;
  return at < 0 ? TEXT.decoding(last + 1, start.limit, "") : TEXT.decoding(arms[at].last + 1, start.limit, which(at));
}

/** A token in words; one without text ends the answer, or is a part of a character. @param {Arm} arm @param {number} t */
export function quoted(arm, t) {
  const text = (arm.texts[t] || "").trim();
  if (text) return `“${text.length > 40 ? `${text.slice(0, 40)}…` : text}”`;
  return t > arm.last || (t === arm.last && arm.end && arm.end.reason === "eos") ? TEXT.end : TEXT.noText;
}

/** Whether a recording is of another model than Run asks. @param {Run} run */
export function ofAnotherModel(run) { return typeof run.meta.other_model === "string"; }

/** How an answer's tokens were chosen. @param {any} start */
export function samplingOf(start) {
  return start.temperature ? `temperature ${start.temperature}, top-p ${start.top_p}, seed ${start.seed ?? "–"}` : "greedy";
}

/** What ran where. @param {any} start */
export function machineOf({ model, machine }) {
  const { gpu, cpu, threads, torch, transformers } = machine || {};
  return [model.name || "model", model.dtype, model.device, gpu || cpu, !gpu && threads ? TEXT.threads(threads) : "", torch ? `torch ${torch}` : "",
    transformers ? `transformers ${transformers}` : ""].filter(Boolean).join(" · ");
}
