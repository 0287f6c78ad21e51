// Zooming into a part of a picture: boxes are [left, top, right, bottom] in its pixels.

/** @typedef {[number, number, number, number]} Box */

const DEEPEST = 16; // times

/**
 * Zoom by a factor around a point, within a frame.
 * @param {Box | null} region what is shown, null: the whole frame
 * @param {Box} frame
 * @param {number} factor above 1: closer
 * @param {[number, number]} point stays where it is
 * @returns {Box | null} null: the whole frame
 */
export function zoomed(region, frame, factor, point) {
  const [left, top, right, bottom] = region || frame, whole = frame[2] - frame[0];
  const width = Math.max(whole / DEEPEST, (right - left) / factor), k = width / (right - left);
  if (width >= whole * 0.999) return null;
  return inside([point[0] - (point[0] - left) * k, point[1] - (point[1] - top) * k, point[0] + (right - point[0]) * k, point[1] + (bottom - point[1]) * k], frame);
}

/** Move a region, never out of its frame. @param {Box} region @param {Box} frame @param {number} dx @param {number} dy */
export function moved([left, top, right, bottom], frame, dx, dy) {
  return inside([left + dx, top + dy, right + dx, bottom + dy], frame);
}

/** @param {Box} region @param {Box} frame @returns {Box} */
function inside([left, top, right, bottom], frame) {
  const dx = Math.max(frame[0] - left, 0) + Math.min(frame[2] - right, 0), dy = Math.max(frame[1] - top, 0) + Math.min(frame[3] - bottom, 0);
  return [left + dx, top + dy, right + dx, bottom + dy];
}
