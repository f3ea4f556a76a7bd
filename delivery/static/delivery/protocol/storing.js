/**
 * From taken in to stored to acked: which chunks are due to be stored, and what the sender hears (PROTOCOL section 3).
 *
 * The lower half of a `Receiver`: it counts chunks and credit, and neither checks what comes nor keeps any data. Times
 * are monotonic seconds.
 */

import { UsageError } from "../errors.js";
import { chunkCount } from "./frames.js";
import { Machine, State } from "./states.js";

/** @import { Ack, Offer } from "./messages.js" */

export const STORE_AFTER_SECONDS = 2;
export const REPORT_AFTER_SECONDS = 0.5;

/**
 * Chunks `start` (inclusive) to `end` (exclusive) that are to be stored now.
 *
 * @typedef {{start: number, end: number}} Run
 */

/**
 * What a receiver grants. All in bytes: `window` unacked at most, `segmentSize` stored as one run, `maxSize`.
 *
 * @typedef {{window: number, segmentSize: number, maxSize: number}} Terms
 */

/** The positions of one incoming transfer; `Receiver` says what they mean. */
export class Storing extends Machine {
  /** @param {Offer} offer @param {number} now */
  constructor(offer, now) {
    super(offer.transfer, offer.handle);
    this.offer = offer;
    this.chunkSize = offer.chunkSize;
    this.size = offer.size;
    this.stored = 0;
    this.received = 0;
    this.handed = 0;
    this.limit = 0;
    this.held = false;
    /** @type {Terms | null} granted by `accept` */
    this._terms = null;
    /** @type {Map<number, number>} how often each chunk that is not stored yet was asked for again */
    this._nacks = new Map();
    this._pendingSince = now;
    this._ackDue = false;
    this._reported = { received: 0, at: now }; // what the last accept, ack or nack said, and when
  }

  /** The number of chunks, null while the size is unknown. */
  get chunks() {
    return this.size === null ? null : chunkCount(this.size, this.chunkSize);
  }

  /** Return the byte position at which chunk `seq` begins, at most the payload's size. @param {number} seq */
  offset(seq) {
    const offset = seq * this.chunkSize;
    return this.size === null ? offset : Math.min(offset, this.size);
  }

  get _windowChunks() {
    return this._terms ? Math.max(1, Math.floor(this._terms.window / this.chunkSize)) : 0;
  }

  get _segmentChunks() {
    return this._terms ? Math.max(1, Math.floor(this._terms.segmentSize / this.chunkSize)) : 1;
  }

  /**
   * Return the run that is to be stored now, null while none is due. The driver starts storing it at once.
   *
   * Due is a full segment, everything before the sender runs out of credit or after `finish`, and what has waited for
   * 2 s. `wakeAt` says when to ask again.
   *
   * @param {number} now
   * @returns {Run | null}
   */
  nextRun(now) {
    const pending = this.received - this.handed;
    if (!pending || this._terms === null || !this.live) {
      return null;
    }
    const full = this._segmentChunks;
    if (pending >= full) {
      return this._hand(full);
    }
    const complete = this.size !== null && this.received === this.chunks;
    const waited = now >= this._pendingSince + STORE_AFTER_SECONDS;
    return this.received >= this.limit || complete || waited ? this._hand(pending) : null;
  }

  /**
   * Return the next run of what was taken in and not handed out yet, due or not; ask until it returns null.
   *
   * Before a planned close, and behind a detachment: what is stored then need not be sent again.
   *
   * @returns {Run | null}
   */
  rest() {
    if (this._terms === null || this.state === State.ABORTED) {
      return null;
    }
    const pending = Math.min(this.received - this.handed, this._segmentChunks);
    return pending ? this._hand(pending) : null;
  }

  /** @param {number} chunks */
  _hand(chunks) {
    const run = { start: this.handed, end: this.handed + chunks };
    this.handed = run.end;
    return run;
  }

  /** Return the time at which `nextRun` or `nextAck` may have something by time alone, null where there is none. */
  wakeAt() {
    if (this.state !== State.OPEN && this.state !== State.FINISHING) {
      return null;
    }
    const times = [];
    if (this.received > this.handed) {
      times.push(this._pendingSince + STORE_AFTER_SECONDS);
    }
    if (this._ackDue) {
      times.push(this._reported.at); // at once
    } else if (this.received > this._reported.received) {
      times.push(this._reported.at + REPORT_AFTER_SECONDS);
    }
    return times.length ? Math.min(...times) : null;
  }

  /**
   * Note that every chunk below `seq` is stored. Falling numbers are ignored: acked positions never decrease.
   *
   * @param {number} seq
   */
  onStored(seq) {
    if (seq <= this.stored) {
      return;
    }
    if (seq > this.received) {
      throw new UsageError(`stored up to ${seq}, but only ${this.received} were taken in`);
    }
    this.stored = seq;
    this.handed = Math.max(this.handed, seq);
    this._ackDue = true;
    for (const asked of this._nacks.keys()) {
      if (asked < seq) {
        this._nacks.delete(asked);
      }
    }
  }

  /**
   * Let at most `window` bytes be unacked from now on, one chunk at least; credit that was given stays given.
   *
   * @param {number} window
   */
  resize(window) {
    if (this._terms !== null) {
      this._terms = { ...this._terms, window };
    }
  }

  /** Give no more credit; what was given stays given. */
  hold() {
    this.held = true;
  }

  /** Give credit again. */
  release() {
    this.held = false;
    this._ackDue = true;
  }

  /**
   * Return the ack to send now, null while there is nothing new to say.
   *
   * What was taken in is reported every 0.5 s, with `atOnce` now: before a pong (PROTOCOL section 5).
   *
   * @param {number} now
   * @param {{atOnce?: boolean}} [options]
   * @returns {Ack | null}
   */
  nextAck(now, { atOnce = false } = {}) {
    if ((this.state !== State.OPEN && this.state !== State.FINISHING) || this._terms === null) {
      return null;
    }
    const { received, at } = this._reported;
    const due = atOnce || now >= at + REPORT_AFTER_SECONDS;
    if (!this._ackDue && !(this.received > received && due)) {
      return null;
    }
    if (!this.held && this.stored + this._windowChunks > this.limit) {
      this.limit = this.stored + this._windowChunks;
    }
    this._ackDue = false;
    this._reported = { received: this.received, at: now };
    return { type: "ack", handle: this.handle, seq: this.stored, received: this.received, limit: this.limit };
  }
}
