/** How far a transfer is, how fast, and how long it still takes. Pure; times are monotonic seconds, sizes bytes. */

const HALF_LIFE_SECONDS = 2;
const FIRST_ESTIMATE_SECONDS = 3;

/**
 * How far a transfer is. `stored` is safe with the receiver; `received` it has taken in; `sent` has left this client.
 * `speed` counts this connection only, `secondsLeft` is null while it cannot be told.
 *
 * @typedef {object} Progress
 * @property {string} transfer
 * @property {number | null} size
 * @property {number} sent
 * @property {number} received
 * @property {number} stored
 * @property {"waiting" | "moving" | "paused" | "checking" | "done" | "failed"} phase
 * @property {number} speed bytes a second
 * @property {number | null} secondsLeft
 */

/** The speed of one transfer on one connection: an average whose weight halves every 2 s. */
export class Speed {
  /** @param {number} position where the transfer goes on @param {number} now */
  constructor(position, now) {
    this._since = now;
    this._position = position;
    this._at = now;
    this._bytes = 0;
    this._seconds = 0;
  }

  /** Note how far it is. @param {number} position @param {number} now */
  note(position, now) {
    const elapsed = now - this._at;
    if (elapsed <= 0) {
      this._bytes += Math.max(0, position - this._position);
    } else {
      const weight = 0.5 ** (elapsed / HALF_LIFE_SECONDS);
      this._bytes = this._bytes * weight + Math.max(0, position - this._position);
      this._seconds = this._seconds * weight + elapsed;
    }
    this._position = Math.max(position, this._position);
    this._at = Math.max(now, this._at);
  }

  /** Bytes a second; what came since the last note is not known yet. @param {number} now */
  speed(now) {
    const elapsed = Math.max(0, now - this._at - 1); // silence counts from a second on: reports come twice a second
    const weight = 0.5 ** (elapsed / HALF_LIFE_SECONDS);
    const seconds = this._seconds * weight + elapsed;
    return seconds > 0 ? (this._bytes * weight) / seconds : 0;
  }

  /**
   * Return the seconds that `left` bytes still take, null in the first 3 s and while nothing moves.
   *
   * @param {number | null} left
   * @param {number} now
   */
  secondsLeft(left, now) {
    const speed = this.speed(now);
    return left === null || now - this._since < FIRST_ESTIMATE_SECONDS || speed <= 0 ? null : left / speed;
  }
}
