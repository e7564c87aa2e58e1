// numbers.js: from two answers of /api/status to what happens in between, and numbers as people read them. Pure.

/** The value at "a.b.c" of a document; undefined where there is none. */
export const at = (document, path) => path.split(".").reduce((value, name) => value?.[name], document);

/** What a counter grew by in a second; null where nobody can say. */
export function perSecond(now, before, seconds) {
  return Number.isFinite(now) && now >= before && seconds > 0 ? (now - before) / seconds : null;
}

/** Two histograms' difference, and the sum of any number of them: bucket by bucket. */
export const minus = (a, b) => a.map((n, i) => n - (b?.[i] ?? 0));
export const plus = (histograms) => histograms.reduce((sum, h) => sum.map((n, i) => n + h[i]));

/** The time in ms that the share q of what is in `buckets` did not exceed, as if each bucket were filled evenly: null of
 * none, Infinity beyond the last bound. */
export function quantile(q, buckets, boundsMs) {
  const wanted = q * buckets.reduce((sum, n) => sum + n, 0);
  if (!(wanted > 0)) return null;
  let below = 0;
  for (let i = 0; i < boundsMs.length; i++) {
    if (below + buckets[i] >= wanted) {
      const from = i > 0 ? boundsMs[i - 1] : 0;
      return from + (boundsMs[i] - from) * (wanted - below) / buckets[i];
    }
    below += buckets[i];
  }
  return Infinity;
}

/** Has anything been counted anew since `before`: another node answers, or its RUN_DIR is a new one? */
export function isOther(now, before) {
  return now.coordination.podId !== before.coordination.podId ||
    now.endpoints.some((e, i) => e.path !== before.endpoints[i]?.path || e.requests < before.endpoints[i].requests);
}

// --- as people read them ---

const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const NONE = "–";

export const count = (n) => Number.isFinite(n) ? (n < 1e7 ? grouped.format(n) : compact.format(n)) : NONE;

export const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;

export function rate(n) {
  if (!Number.isFinite(n)) return NONE;
  return n === 0 ? "0" : n < 10 ? n.toFixed(1) : n < 1e5 ? grouped.format(n) : compact.format(n);
}

export function duration(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return NONE;
  if (ms === Infinity) return "over 10 s";
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(2) : ms < 100 ? ms.toFixed(1) : ms.toFixed(0)} ms`;
  for (const [unit, size, next] of [["s", 1e3, 6e4], ["min", 6e4, 36e5], ["h", 36e5, 864e5]])
    if (ms < next) return `${(ms / size).toFixed(ms < size * 10 && unit === "s" ? 1 : 0)} ${unit}`;
  return `${(ms / 864e5).toFixed(0)} d`;
}

/** Whole seconds and more, for what is looked at once a second. */
export function age(ms) {
  if (!Number.isFinite(ms)) return NONE;
  return ms < 60000 ? `${Math.max(0, Math.floor(ms / 1000))} s` : duration(ms);
}

export function bytes(n) {
  if (!Number.isFinite(n)) return NONE;
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]])
    if (n >= size) return `${(n / size).toFixed(n < 10 * size ? 1 : 0)} ${unit}`;
  return `${n} bytes`;
}

export const percent = (part, whole) => whole > 0 ? `${Math.round(100 * part / whole)} %` : NONE;

/** The time of day as the logs tell it, wherever one looks from. */
export const clockTime = (moment) => `${new Date(moment).toISOString().slice(11, 19)} UTC`;
