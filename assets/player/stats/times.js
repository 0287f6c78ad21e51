// Statistics of times: plain functions of numbers, which know nothing of the page.

export const MIN_STEPS = 20; // steps that two arms must have in common before their times are compared
export const MOST_REPEATS = 20; // what the page can be asked for

/** @param {number[]} values @param {number} q @returns {any} null without values */
export function quantile(values, q) {
  if (!values.length) return null;
  const sorted = [...values].sort((a, b) => a - b);
  const at = (sorted.length - 1) * q;
  const low = Math.floor(at);
  return sorted[low] + (sorted[Math.min(low + 1, sorted.length - 1)] - sorted[low]) * (at - low);
}

/** @param {number[]} values @returns {any} null without values */
export function median(values) {
  return quantile(values, 0.5);
}

/** @param {number[]} values */
export function spreadOf(values) {
  return { n: values.length, middle: median(values), low: quantile(values, 0.25), high: quantile(values, 0.75) };
}

/** @param {number} spread @param {number} n */
const notch = (spread, n) => (1.57 * (1 + 2 / n) * spread) / Math.sqrt(n);

/**
 * Compare the times per token of two arms.
 *
 * With three complete runs of each, the runs' medians are compared: they differ where median ± 1.57 IQR / √n do not overlap (the notches of
 * McGill, Tukey and Larsen 1978), widened by 1 + 2 / n because the quartiles of few runs lie too close together: with it, noise is called a
 * difference in less than 6 % of cases for every n. Steps of one run are alike in what slows them all, so for these the middle halves
 * themselves must not overlap; and only steps that both arms made count, because a step takes longer the longer the answer is.
 *
 * @typedef {{ steps: number[], runs: number[], stopped: boolean }} Times ms of each decode step; median ms of each complete run, the first included
 * @typedef {{ kind: "few" | "close" | "apart", basis: "runs" | "steps", n: number, ratio: number | null, repeats: number | null }} Comparison
 *     ratio: b's time / a's; repeats: runs that would tell, null: too many
 * @param {Times} a
 * @param {Times} b
 * @returns {Comparison}
 */
export function compareTimes(a, b) {
  const common = Math.min(a.steps.length, b.steps.length), most = Math.max(a.steps.length, b.steps.length);
  const complete = !a.stopped && !b.stopped && Math.min(a.runs.length, b.runs.length) >= 3 && common >= 0.9 * most;
  const [x, y] = complete ? [a.runs, b.runs].map(spreadOf) : [a.steps, b.steps].map((steps) => spreadOf(steps.slice(0, common)));
  const basis = complete ? "runs" : "steps", n = complete ? Math.min(x.n, y.n) : common;
  if (!complete && common < MIN_STEPS) return { kind: "few", basis, n, ratio: null, repeats: null };
  const difference = Math.abs(x.middle - y.middle), spread = x.high - x.low + y.high - y.low;
  const apart = complete ? difference > notch(spread, n) : x.low > y.high || y.low > x.high;
  const ratio = y.middle / x.middle;
  let needed = complete ? n + 1 : 3;
  while (needed <= MOST_REPEATS && notch(spread, needed) >= difference) needed++;
  const slight = Math.abs(Math.log(ratio)) < 0.01; // 1 %: no news, however sure it is
  return { kind: apart && !slight ? "apart" : "close", basis, n, ratio, repeats: needed > MOST_REPEATS || slight ? null : needed };
}
