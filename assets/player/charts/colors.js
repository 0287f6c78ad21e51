// Colors of sets and heat, readable without color vision: sets differ by pattern too.

export const SET_COLORS = { core: "#f0e442", secondary: "#009e73", spread: "#56b4e9", missed: "#d55e00", veil: "rgba(8,12,18,0.74)", gained: "#f0e442", lost: "#cc79a7" };

export const THUMB_COLORS = [[28, 36, 46], [0, 158, 115], [240, 228, 66], [92, 66, 84]];

// dark violet to yellow in 64 steps of rising lightness (own table from three stops)
const STEPS = 64;
const TABLE = Array.from({ length: STEPS }, (_, i) => {
  const x = i / (STEPS - 1), stops = [[22, 16, 60], [32, 118, 140], [246, 232, 80]];
  const [from, to, y] = x < 0.5 ? [stops[0], stops[1], x * 2] : [stops[1], stops[2], x * 2 - 1];
  return from.map((value, k) => Math.round(value + (to[k] - value) * y));
});
const STYLES = TABLE.map((color) => `rgba(${color.join()},0.78)`);

/** @param {number} x 0 to 1 */
const stepOf = (x) => Math.max(0, Math.min(STEPS - 1, Math.floor(x * STEPS)));

/** A fill style for a share. @param {number} x 0 to 1 */
export function heatColor(x) { return STYLES[stepOf(x)]; }

/** Red, green and blue of a share. @param {number} x 0 to 1 */
export function heatPixel(x) { return TABLE[stepOf(x)]; }
