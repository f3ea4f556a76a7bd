/** A bound on bytes a second: how much may go now, and when the next may. Pure; times are monotonic seconds. */

const BURST_SECONDS = 0.25;

/** A token bucket; bytes that were taken too many are paid back before the next go. */
export class RateLimit {
  /** @param {number | null} rate bytes a second, null for no limit @param {number} now */
  constructor(rate, now) {
    this.rate = rate;
    this._credit = 0;
    this._at = now;
  }

  /** Change the rate from now on. @param {number | null} rate @param {number} now */
  change(rate, now) {
    this._refill(now);
    this.rate = rate;
    this._credit = Math.min(this._credit, rate === null ? 0 : rate * BURST_SECONDS);
  }

  /** @param {number} now */
  _refill(now) {
    if (this.rate !== null) {
      this._credit = Math.min(this._credit + (now - this._at) * this.rate, this.rate * BURST_SECONDS);
    }
    this._at = now;
  }

  /** Return how many seconds to wait before anything may go; 0 where it may now. @param {number} now */
  wait(now) {
    if (this.rate === null) {
      return 0;
    }
    this._refill(now);
    return this._credit >= 0 ? 0 : -this._credit / this.rate;
  }

  /** Note that bytes went. @param {number} bytes @param {number} now */
  take(bytes, now) {
    if (this.rate !== null) {
      this._refill(now);
      this._credit -= bytes;
    }
  }
}
