// How far a policy agrees with full attention on full attention's answer: means of an agreement event.

/** @typedef {{ share: number, kl: number, perplexity: number, full: number, n: number }} Agreed share of tokens with the same likeliest token; mean KL in nats; perplexity of the answer under the policy and under full attention */

/** @param {number[]} values */
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** @param {import("../trace/run.js").Arm} arm @returns {Agreed | null} null where it was not measured */
export function agreementOf({ agreement: event }) {
  if (!event || !event.tokens.length) return null;
  const n = event.tokens.length, same = event.top.filter((/** @type {number | null} */ token) => token === null).length;
  return { share: same / n, kl: mean(event.kl), perplexity: Math.exp(mean(event.nll)), full: Math.exp(mean(event.full_nll)), n };
}

const MOST = 2; // nats from which the background is as dark as it gets

/** How much of a color a divergence gets, 0 to 1: small ones show too. @param {number} kl nats */
export function strengthOf(kl) { return Math.sqrt(Math.min(Math.max(kl, 0), MOST) / MOST); }
