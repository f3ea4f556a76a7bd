/** The largest chunk that a URL took, remembered for 24 h (PROTOCOL section 6). A cache: without storage it forgets. */

import { isChunkSize } from "../protocol/frames.js";

const KEY = "delivery.ceilings";
const REMEMBERED_MILLISECONDS = 24 * 3600 * 1000;

/** Chunk ceilings in bytes by URL. */
export class Ceilings {
  /** @param {Pick<Storage, "getItem" | "setItem"> | null} storage such as `localStorage` */
  constructor(storage) {
    this._storage = storage;
    /** @type {Record<string, [number, number]>} */
    this._known = {};
  }

  /** Return the ceiling of `url`, null where none is remembered. @param {string} url */
  get(url) {
    const [chunkSize, until] = this._read()[keyOf(url)] ?? [0, 0];
    const now = Date.now();
    return now < until && until <= now + REMEMBERED_MILLISECONDS && isChunkSize(chunkSize) ? chunkSize : null;
  }

  /**
   * Note that chunks of `chunkSize` bytes are the largest to try at `url`.
   *
   * @param {string} url
   * @param {number} chunkSize
   */
  remember(url, chunkSize) {
    const now = Date.now();
    this._known[keyOf(url)] = [chunkSize, now + REMEMBERED_MILLISECONDS];
    const live = Object.entries(this._read()).filter(([, entry]) => entry[1] > now);
    try {
      this._storage?.setItem(KEY, JSON.stringify(Object.fromEntries(live)));
    } catch {
      // full, or not allowed: it is a cache
    }
  }

  /** @returns {Record<string, [number, number]>} */
  _read() {
    try {
      const found = JSON.parse(this._storage?.getItem(KEY) ?? "{}");
      const valid = Object.entries(found).filter(([, entry]) => Array.isArray(entry) && entry.length === 2);
      return { ...Object.fromEntries(/** @type {any} */ (valid)), ...this._known };
    } catch {
      return this._known;
    }
  }
}

/** Return the URL without login and query: neither changes what fits through. @param {string} url */
function keyOf(url) {
  const { protocol, host, pathname } = new URL(url);
  return `${protocol}//${host}${pathname}`;
}
