/**
 * Which handles one direction of a connection has used (PROTOCOL section 2).
 *
 * A message for a handle that is no longer live is dropped, one for a handle that was never offered is a violation: this
 * tells the two apart without remembering every offer.
 */

import { ProtocolViolation } from "../errors.js";

// A peer counts up by one, or skips a few. Of one that skips more often than this, the oldest gaps are forgotten.
const REMEMBERED_GAPS = 64;

/** The handles that one side has offered, in the rising order that the protocol asks for. */
export class Handles {
  constructor() {
    this.highest = 0;
    /** @type {Array<[number, number]>} first and last of each gap, oldest first */
    this._skipped = [];
  }

  /**
   * Note the handle of a new offer.
   *
   * @param {number} handle
   * @throws {ProtocolViolation} where it does not exceed all earlier ones
   */
  take(handle) {
    if (handle <= this.highest) {
      throw new ProtocolViolation("handle does not rise");
    }
    if (handle > this.highest + 1) {
      this._skipped.push([this.highest + 1, handle - 1]);
      if (this._skipped.length > REMEMBERED_GAPS) {
        this._skipped.shift();
      }
    }
    this.highest = handle;
  }

  /** @param {number} handle */
  has(handle) {
    const inGap = this._skipped.some(([first, last]) => handle >= first && handle <= last);
    return handle >= 1 && handle <= this.highest && !inGap;
  }

  /** @param {number} handle @throws {ProtocolViolation} for a handle that was never offered */
  check(handle) {
    if (!this.has(handle)) {
      throw new ProtocolViolation("handle was never offered");
    }
  }
}
