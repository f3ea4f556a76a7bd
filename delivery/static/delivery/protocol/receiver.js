/**
 * The receiving side of one transfer on one connection (PROTOCOL sections 2 to 5).
 *
 * It checks what comes, says what may come, what is to be stored now, and what to tell the sender. The driver keeps the
 * data and stores it. It does not know whether it serves a server's upload or a client's delivery. Times are monotonic
 * seconds.
 */

import { MessagesLost, ProtocolViolation, Refused, TransferAborted, UsageError } from "../errors.js";
import { REJECT_CODES } from "./codes.js";
import { CHUNK_SIZE_MIN, MAX_SEQ, agreedChunkSize, chunkCount } from "./frames.js";
import { Move, State } from "./states.js";
import { Storing } from "./storing.js";

/** @import { Chunk } from "./frames.js" */
/** @import { Abort, Accept, Done, Finish, Nack, Offer, Reject } from "./messages.js" */
/** @import { Terms } from "./storing.js" */

const NACKS_OF_ONE_SEQ = 2; // a third one is an abort

/**
 * What became of a chunk.
 *
 * @enum {string}
 */
export const Taken = /** @type {const} */ ({
  KEPT: "kept", // the driver keeps its data until it is stored
  DROPPED: "dropped", // seen before, or not wanted now
  DAMAGED: "damaged", // its checksum is wrong: send what `lost` returns
});

/**
 * One incoming transfer.
 *
 * In chunks: `stored`, everything below is stored (what an ack says); `received`, the next number wanted; `handed`, where
 * the next run to store begins; `limit`, the credit given. `size` is in bytes, null while unknown.
 */
export class Receiver extends Storing {
  /** @param {Offer} offer @param {{earlyData?: number, now?: number}} [options] `earlyData` in bytes */
  constructor(offer, { earlyData = 0, now = 0 } = {}) {
    super(offer, now);
    this.sha256 = offer.sha256;
    /** @type {Finish | null} */
    this.finish = null;
    this._early = offer.size !== null && offer.size > 0 && offer.size <= Math.min(earlyData, offer.chunkSize);
    this._rewinding = false;
    /** @type {number | null} */
    this._endedShort = null;
  }

  // -- answering the offer --------------------------------------------------------------------------------------------

  /**
   * Accept from byte `stored` on; return the answer to send. Early data that came already stays taken in.
   *
   * @param {{chunkSize: number, stored: number, terms: Terms, now: number, expires?: string | null, hold?: boolean,
   *   size?: number | null}} options `chunkSize`: the largest that we announced; `size`: of the payload in bytes, where
   *   it is known although this offer does not tell
   * @returns {Accept}
   * @throws {UsageError} where `stored` is no place between two chunks
   * @throws {Refused} where the payload has more chunks than can be counted
   */
  accept({ chunkSize, stored, terms, now, expires = null, hold = false, size = null }) {
    let total = size ?? this.size;
    if (total === null && stored % CHUNK_SIZE_MIN !== 0) {
      total = stored; // an earlier connection's last, short chunk is in it
    }
    const chosen = agreedChunkSize(this.chunkSize, chunkSize, stored, total);
    if (chosen < CHUNK_SIZE_MIN || (total !== null && stored > total)) {
      throw new UsageError(`cannot go on from byte ${stored} of ${total}`);
    }
    if (total !== null && chunkCount(total, chosen) > MAX_SEQ) {
      throw new Refused("too_large", "", { maxSize: MAX_SEQ * chosen });
    }
    this._local(Move.ACCEPT);
    this._begin(chunkCount(stored, chosen), chosen, total, now);
    this._terms = terms;
    this.held = hold;
    this.limit = hold ? this.stored : this.stored + this._windowChunks;
    const { transfer, handle, limit } = this;
    return { type: "accept", transfer, handle, chunkSize: chosen, seq: this.stored, limit, expires };
  }

  /**
   * Start at chunk `position`, or behind what came early.
   *
   * @param {number} position
   * @param {number} chunkSize
   * @param {number | null} size
   * @param {number} now
   */
  _begin(position, chunkSize, size, now) {
    if (chunkSize !== this.chunkSize) {
      this.received = 0; // then it was no first offer: what came early does not fit
      this.finish = null;
    }
    this.chunkSize = chunkSize;
    this.size = size;
    this.stored = this.handed = position;
    this.received = Math.max(position, this.received);
    this._rewinding = this._rewinding && position === 0;
    this._pendingSince = now;
    this._reported = { received: position, at: now };
    if (this.finish !== null) {
      this._local(Move.FINISH);
    }
  }

  /** Whether early data came damaged, which cannot be said before the accept: `lost` is due. */
  get owesNack() {
    return this._rewinding && this.state === State.OPEN && this._nacks.size === 0;
  }

  /**
   * Return the message that refuses the offer.
   *
   * @param {string} code
   * @param {string} [message]
   * @returns {Reject}
   * @throws {UsageError} for a code that the protocol does not have
   */
  reject(code, message = "") {
    if (!REJECT_CODES.has(code)) {
      throw new UsageError(`no reject is called ${code}`);
    }
    this._local(Move.REJECT);
    const { transfer, handle } = this;
    return { type: "reject", transfer, handle, code, message, maxSize: null, retryAfter: null };
  }

  // -- what the sender sends ------------------------------------------------------------------------------------------

  /**
   * Check a chunk. `KEPT`: the driver keeps its data until `onStored` covers it.
   *
   * @param {Chunk} chunk
   * @param {number} now
   * @returns {string} a `Taken`
   * @throws {ProtocolViolation} for what section 3 forbids
   * @throws {MessagesLost} where chunks before it are missing
   * @throws {TransferAborted} where the payload grows beyond what is allowed: the driver then sends `abort`
   */
  onChunk(chunk, now) {
    const { seq } = chunk;
    const { length } = chunk.data;
    if (seq < this.received || (this._rewinding && seq !== this.received)) {
      return Taken.DROPPED;
    }
    this._checkPlace(seq, length);
    if (!chunk.intact()) {
      this._rewinding = true;
      return Taken.DAMAGED;
    }
    this._rewinding = false;
    if (this.size === null) {
      this._checkGrowth(seq, length);
    }
    if (this.received === this.handed) {
      this._pendingSince = now;
    }
    this.received = seq + 1;
    return Taken.KEPT;
  }

  /** @param {number} seq @param {number} length */
  _checkPlace(seq, length) {
    const allowed = this.state === State.OFFERED ? Number(this._early) : this.limit;
    if (seq >= allowed) {
      throw new ProtocolViolation("chunk beyond the limit");
    }
    if (this.finish !== null || (this.size !== null && seq * this.chunkSize >= this.size)) {
      throw new ProtocolViolation("chunk past the end");
    }
    if (seq > this.received) {
      throw new MessagesLost("chunks lost on the way");
    }
    const left = this.size === null ? this.chunkSize : this.size - seq * this.chunkSize;
    const expected = Math.min(this.chunkSize, left);
    if (length > expected || (length < expected && this.size !== null)) {
      throw new ProtocolViolation("chunk of the wrong length");
    }
  }

  /** @param {number} seq @param {number} length */
  _checkGrowth(seq, length) {
    const total = seq * this.chunkSize + length;
    if (seq >= MAX_SEQ || (this._terms !== null && total > this._terms.maxSize)) {
      throw new TransferAborted("too_large", `more than ${this._terms ? this._terms.maxSize : MAX_SEQ} bytes`);
    }
    if (length < this.chunkSize) {
      this.size = this._endedShort = total; // the first short chunk is the last
    }
  }

  /**
   * Take `finish`, which freezes the transfer; return false where it is dropped (repeated, or while rewinding).
   *
   * @param {Finish} message
   * @throws {MessagesLost} where more chunks were sent than came
   * @throws {ProtocolViolation} for any other wrong count
   */
  onFinish(message) {
    if (this._rewinding || this.finish !== null) {
      return false;
    }
    if (this.state === State.OFFERED && !this._early) {
      throw new ProtocolViolation("finish before accept");
    }
    if (message.chunks > this.received) {
      throw new MessagesLost("chunks lost on the way");
    }
    const size = this.size ?? this.received * this.chunkSize;
    const counted = chunkCount(size, this.chunkSize);
    if (message.chunks !== this.received || message.size !== size || counted !== this.received) {
      throw new ProtocolViolation("finish with wrong counts");
    }
    if (this.state !== State.OFFERED) {
      this._remote(Move.FINISH);
    }
    this.size = size;
    this.finish = message;
    return true;
  }

  /** @param {Abort} message */
  onAbort(message) {
    this._remote(message.final ? Move.ABORT : Move.DETACH);
  }

  // -- going back -----------------------------------------------------------------------------------------------------

  /**
   * Go back to chunk `seq`, which came damaged (`checksum`) or was gone before it was stored (`lost`).
   *
   * Returns the message to send: a nack, or instead of the third one of the same chunk an abort that detaches. Runs that
   * were handed out from `seq` on are void. A `finish` is to be said again.
   *
   * @param {number} seq
   * @param {string} code
   * @returns {Nack | Abort}
   * @throws {UsageError} for a chunk that is stored, or that never came
   */
  lost(seq, code) {
    const came = this.received + Number(this._rewinding); // one more than was taken in, where one came damaged
    if (seq < this.stored || seq >= came) {
      throw new UsageError(`cannot go back to ${seq}: ${this.stored} stored, ${came} came`);
    }
    const times = (this._nacks.get(seq) ?? 0) + 1;
    this._nacks.set(seq, times);
    if (times > NACKS_OF_ONE_SEQ) {
      return this.abort("integrity", "damaged or lost three times", { final: false });
    }
    this._local(Move.REWIND);
    this.received = seq;
    this.handed = Math.min(this.handed, seq);
    this.finish = null;
    this._rewinding = true;
    this._reported = { received: seq, at: this._reported.at };
    if (this._endedShort !== null) {
      this.size = this._endedShort = null; // the short chunk is dropped, and with it what it told
    }
    return { type: "nack", handle: this.handle, seq, code };
  }

  // -- ending ---------------------------------------------------------------------------------------------------------

  /** Whether `finish` came and everything is stored: only the digest is left to check. */
  get complete() {
    return this.state === State.FINISHING && this.stored === this.chunks;
  }

  /** Return the digests that the sender gave, at the offer and at `finish`: what is stored must agree with all. */
  expectedDigests() {
    const given = [this.sha256, this.finish?.sha256 ?? null];
    return new Set(given.filter((digest) => digest !== null));
  }

  /**
   * Return the message that ends the transfer: stored and checked. Also answers an offer of a finished one.
   *
   * @param {{size: number, sha256: string, payload?: string | null}} stored
   * @returns {Done}
   * @throws {UsageError} where it is not all stored, or `size` or `sha256` are not what the sender said
   */
  done({ size, sha256, payload = null }) {
    const others = [...this.expectedDigests()].some((digest) => digest !== sha256);
    if ((this.size !== null && this.size !== size) || others) {
      throw new UsageError("done with another size or digest than the sender's");
    }
    if (this.state === State.FINISHING && !this.complete) {
      throw new UsageError(`done with ${this.stored} of ${this.chunks} chunks stored`);
    }
    this._local(Move.DONE);
    return { type: "done", transfer: this.transfer, handle: this.handle, size, sha256, payload };
  }
}
