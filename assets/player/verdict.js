// What a run shows, in sentences: shares, who is faster, and why a policy is slower.

import { shortLabel } from "./labels.js";
import { MIN_STEPS, MOST_REPEATS, compareTimes } from "./stats/times.js";
import { TEXT } from "./text.js";

/** @typedef {import("./trace/run.js").Run} Run */
/** @typedef {import("./trace/run.js").Arm} Arm */
/** @typedef {import("./stats/times.js").Comparison} Comparison */

/** How two arms' times compare. @param {Run} run @param {Arm} a @param {Arm} b */
export function timesOf(run, a, b) {
  const [x, y] = [a, b].map((arm) => ({ steps: arm.stepMs(), runs: run.medians(arm.index), stopped: !arm.end || arm.end.reason === "stopped" }));
  return compareTimes(x, y);
}

/** @param {Comparison} found */
function basisOf({ basis, n }) { return basis === "runs" ? TEXT.basisRuns(n) : TEXT.basisSteps(n); }

/** One phrase: which arm is faster, or that it cannot be told. @param {Run} run @param {Arm} a @param {Arm} b */
export function timesInWords(run, a, b) {
  const found = timesOf(run, a, b);
  if (found.kind === "few" || found.ratio === null) return TEXT.fewTokens(found.n, MIN_STEPS);
  if (found.kind === "close") return TEXT.tooClose(basisOf(found));
  const [fast, slow, times] = found.ratio >= 1 ? [a, b, found.ratio] : [b, a, 1 / found.ratio];
  return TEXT.faster(shortLabel(run, fast), times, shortLabel(run, slow), basisOf(found));
}

/** @param {Comparison} found */
function advice(found) {
  if (found.basis === "runs" && Math.abs(Math.log(found.ratio || 1)) < 0.01) return TEXT.adviceSlight;
  return found.repeats === null ? TEXT.adviceNever(MOST_REPEATS) : TEXT.adviceRepeats(found.repeats);
}

/** @param {Run} run @param {Arm[]} arms one or two */
export function verdict(run, [a, b]) {
  const sentences = [], share = (/** @type {Arm} */ arm, /** @type {number[]} */ list) => run.meanShare(arm, list) || 0;
  const arms = b ? [a, b] : [a], twins = b && a.spec.label === b.spec.label;
  if (!arms.some((arm) => arm.last >= 1)) return TEXT.fewToCompare;
  for (const arm of twins ? [a] : arms) {
    if (arm.isFull || arm.last < 1) continue;
    sentences.push(TEXT.storedAndRead(twins ? TEXT.bothArms(a.spec.label) : shortLabel(run, arm), share(arm, arm.storedBytes), share(arm, arm.readBytes)));
  }
  if (arms.every((arm) => arm.isFull)) sentences.push(TEXT.allFull(Boolean(b)));
  if (!b || a.last < 1 || b.last < 1) return sentences.join(" ");
  if (twins) return [...sentences, TEXT.sameSettings].join(" ");
  if (!a.isFull && !b.isFull) sentences.push(storedBeside(run, a, b));
  return [...sentences, ...ofTimes(run, a, b)].join(" ");
}

/** @param {Run} run @param {Arm} a @param {Arm} b */
function storedBeside(run, a, b) {
  const share = (/** @type {Arm} */ arm) => run.meanShare(arm, arm.storedBytes) || 0, [less, more] = share(a) <= share(b) ? [a, b] : [b, a], part = share(less) / share(more);
  return part > 0.995 ? TEXT.storedSame(shortLabel(run, a), shortLabel(run, b)) : TEXT.storedPart(shortLabel(run, less), part, shortLabel(run, more));
}

/** @param {Run} run @param {Arm} a @param {Arm} b */
function ofTimes(run, a, b) {
  const found = timesOf(run, a, b), words = timesInWords(run, a, b), sentences = [`${words[0].toUpperCase()}${words.slice(1)}.`];
  if (found.kind === "close") sentences.push(advice(found));
  if (found.kind === "apart" && found.basis === "steps") sentences.push(TEXT.repeatToSee);
  const adaptive = a.isFull ? b : b.isFull ? a : null;
  const slower = adaptive && found.ratio ? (adaptive === b ? found.ratio : 1 / found.ratio) : 0;
  if (adaptive && (found.kind === "close" || (found.kind === "apart" && slower > 1))) sentences.push(why(run, adaptive, found.kind === "apart" ? slower : 1));
  return sentences;
}

/** Why a policy saves little time. @param {Run} run @param {Arm} arm @param {number} ratio */
function why({ start }, arm, ratio) {
  const cpu = String(start.model.device || "").startsWith("cpu"), bytes = start.token_bytes * start.n_image;
  const words = [start.batch === 1 ? TEXT.why.batchOne(bytes) : TEXT.why.small(bytes)];
  if (ratio > 1.02) {
    const inPlace = /triton|numba/i.test(arm.spec.implementation);
    words.push(cpu && !inPlace ? TEXT.why.cpu : inPlace ? TEXT.why.inPlace : TEXT.why.gathered);
  }
  return `${words.join(", ")}.`;
}

/** What an arm was predicted to store and read over the steps that it took; null where a recording lacks it. @param {Run} run @param {Arm} arm */
export function predicted(run, arm) {
  const { token_bytes: bytes, layers, batch } = run.start, told = arm.predicted(arm.last);
  if (!told) return null;
  const [storedBytes, readBytes] = [told.stored, told.read].map((tokens) => tokens * bytes / layers * batch), full = run.meanFullBytes(arm.last, arm);
  return { storedBytes, readBytes, stored: storedBytes / full, read: readBytes / full };
}

/** Whether an answer holds the expected one. @param {Arm} arm @param {string} expected */
export function rightOrWrong(arm, expected) {
  const said = plainWords(arm.text), wanted = plainWords(expected);
  return ` ${said} `.includes(` ${wanted} `) ? TEXT.right(expected) : TEXT.wrong(expected);
}

/** @param {string} text */
function plainWords(text) {
  return String(text).toLowerCase().replace(/[^\p{L}\p{N}]+/gu, " ").trim();
}
