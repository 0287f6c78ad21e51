// Where two answers differ.

/**
 * Tokens that belong to one of two lists alone: what is not in their longest common subsequence.
 * @param {number[]} a
 * @param {number[]} b
 * @param {number} same length of the prefix that they share
 * @returns {[Uint8Array, Uint8Array]} 1 for a token that the other has not
 */
export function aligned(a, b, same) {
  const n = a.length - same, m = b.length - same, width = m + 1;
  const best = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) for (let j = m - 1; j >= 0; j--) {
    best[i * width + j] = a[same + i] === b[same + j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
  }
  /** @type {[Uint8Array, Uint8Array]} */
  const marks = [new Uint8Array(a.length), new Uint8Array(b.length)];
  let i = 0, j = 0;
  while (i < n || j < m) {
    if (i < n && j < m && a[same + i] === b[same + j]) { i++; j++; }
    else if (j >= m || (i < n && best[(i + 1) * width + j] >= best[i * width + j + 1])) marks[0][same + i++] = 1;
    else marks[1][same + j++] = 1;
  }
  return marks;
}
