// How sets and scores of image tokens travel: see avl/trace/codec.py.

/** base64 of numpy.packbits (highest bit first) -> one byte per token. @param {string} text @param {number} n */
export function unpackBits(text, n) {
  const raw = bytesOf(text), bits = new Uint8Array(n);
  for (let i = 0; i < n; i++) bits[i] = (raw[i >> 3] >> (7 - (i & 7))) & 1;
  return bits;
}

/** base64 of numpy.packbits -> 32-bit words with the same bits, to be counted. @param {string} text @param {number} n */
export function unpackWords(text, n) {
  const raw = bytesOf(text), words = new Uint32Array((n + 31) >> 5);
  for (let i = 0; i < raw.length; i++) words[i >> 2] |= raw[i] << (8 * (i & 3));
  return words;
}

/** One byte per token -> the words of unpackWords. @param {ArrayLike<number>} bits */
export function wordsOf(bits) {
  const words = new Uint32Array((bits.length + 31) >> 5);
  for (let i = 0; i < bits.length; i++) if (bits[i]) words[i >> 5] |= 1 << (8 * ((i >> 3) & 3) + 7 - (i & 7));
  return words;
}

// a code of 8 bits: 0 is nothing, c is 2 ** (-(255 - c) / 12)
const LEVELS = Float32Array.from({ length: 256 }, (_, code) => (code ? 2 ** (-(255 - code) / 12) : 0));

/**
 * Scores of one layer.
 * @param {string} text "d:" every token, "t:" the highest ones, without either: float16 of older recordings
 * @param {number} n image tokens
 * @returns {Float32Array} a token that is not told is NaN
 */
export function unpackScores(text, n) {
  if (text.startsWith("t:")) return topScores(bytesOf(text.slice(2)), n);
  if (text.startsWith("d:")) return Float32Array.from(bytesOf(text.slice(2)).subarray(0, n), (code) => LEVELS[code]);
  return halves(bytesOf(text), n);
}

/** @param {Uint8Array} raw @param {number} n */
function topScores(raw, n) {
  const scores = new Float32Array(n).fill(NaN);
  let at = 0;
  const number = () => {
    let value = 0;
    for (let shift = 0; ; shift += 7) {
      const byte = raw[at++];
      value |= (byte & 127) << shift;
      if (!(byte & 128)) return value;
    }
  };
  const count = number(), tokens = [];
  let token = -1;
  for (let i = 0; i < count; i++) tokens.push(token += number());
  for (const one of tokens) scores[one] = LEVELS[raw[at++]];
  return scores;
}

/** @param {Uint8Array} raw @param {number} n */
function halves(raw, n) {
  const scores = new Float32Array(n);
  for (let i = 0; i < n; i++) {
    const half = raw[2 * i] | (raw[2 * i + 1] << 8);
    const exponent = (half >> 10) & 31, fraction = half & 1023;
    const size = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
    scores[i] = half & 0x8000 ? -size : size;
  }
  return scores;
}

/** @param {string} text base64 */
function bytesOf(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}
