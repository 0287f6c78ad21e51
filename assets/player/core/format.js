// Numbers in words, as the page writes them.

export const DASH = "–";

// one a number of digits: making a formatter takes longer than a frame has room for
const FORMATS = Array.from({ length: 5 }, (_, digits) => new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits }));

/** @param {number} value @param {number} digits */
export function fixed(value, digits) {
  return FORMATS[digits].format(value);
}

/** @param {number | null | undefined} value @returns {value is number} */
const known = (value) => value !== null && value !== undefined && isFinite(value);

/** @param {number | null | undefined} ms */
export function formatMs(ms) {
  if (!known(ms)) return DASH;
  if (ms >= 10000) return `${fixed(ms / 1000, 1)} s`;
  if (ms >= 100) return `${fixed(ms, 0)} ms`;
  return ms >= 10 ? `${fixed(ms, 1)} ms` : `${fixed(ms, 2)} ms`;
}

/** Seconds that passed while somebody waits. @param {number} ms */
export function formatElapsed(ms) {
  return `${fixed(Math.max(0, ms) / 1000, ms < 10000 ? 1 : 0)} s`;
}

/** @param {number | null | undefined} bytes */
export function formatBytes(bytes) {
  if (!known(bytes)) return DASH;
  const { name, size } = byteUnit(Math.abs(bytes)), value = bytes / size;
  return `${fixed(value, Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2)} ${name}`;
}

/** The binary unit that suits a number of bytes. @param {number} bytes */
export function byteUnit(bytes) {
  return bytes >= 2 ** 30 ? { name: "GiB", size: 2 ** 30 } : bytes >= 2 ** 20 ? { name: "MiB", size: 2 ** 20 } : { name: "KiB", size: 2 ** 10 };
}

/** @param {number | null | undefined} share */
export function formatPercent(share) {
  return known(share) ? `${fixed(share * 100, share < 0.0995 ? 1 : 0)} %` : DASH;
}

/** A share of which only all is 100 %. @param {number} share */
export function formatAgreed(share) {
  return share < 1 && share >= 0.995 ? `${fixed(Math.floor(share * 1000) / 10, 1)} %` : formatPercent(share);
}

/** @param {number | null | undefined} perSecond */
export function formatRate(perSecond) {
  return perSecond && isFinite(perSecond) ? `${fixed(perSecond, perSecond >= 100 ? 0 : 1)} tok/s` : DASH;
}

/** Time of day where the visitor is. @param {string} date ISO */
export function formatTime(date) {
  const when = new Date(date);
  return isNaN(when.getTime()) ? DASH : when.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
}

/** @param {number} tokens */
export const counted = (tokens) => `${tokens} token${tokens === 1 ? "" : "s"}`;

/** Numbers as ranges: 0–3, 5. @param {number[]} numbers ascending */
export function ranges(numbers) {
  const parts = [];
  for (let i = 0; i < numbers.length;) {
    let j = i;
    while (j + 1 < numbers.length && numbers[j + 1] === numbers[j] + 1) j++;
    parts.push(j > i ? `${numbers[i]}–${numbers[j]}` : String(numbers[i]));
    i = j + 1;
  }
  return parts.join(", ");
}

/** @param {string[]} words */
export function listed(words) {
  return words.length > 1 ? `${words.slice(0, -1).join(", ")} and ${words[words.length - 1]}` : words[0] || "";
}
