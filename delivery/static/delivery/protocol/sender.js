/**
 * The sending side of one transfer on one connection (PROTOCOL sections 2 to 5).
 *
 * Holds numbers, never bytes: it says which span is to be sent next, the driver reads and sends it. It does not know
 * whether it serves a client's upload or a server's delivery. Times are monotonic seconds.
 */

import { ProtocolViolation, UsageError } from "../errors.js";
import { MAX_SEQ, chunkCount, isChunkSize } from "./frames.js";
import { Machine, Move, State } from "./states.js";

/** @import { Abort, Accept, Ack, Done, Finish, Nack, Offer, Reject } from "./messages.js" */

export const STALL_SECONDS = 60;

/**
 * What to send next: chunk `seq`, the bytes from `offset` on, at most `length` of them. Where the size of the payload is
 * known, exactly `length` bytes; where it is not, fewer mean that it ends here.
 *
 * @typedef {{seq: number, offset: number, length: number}} Span
 */

/**
 * One outgoing transfer.
 *
 * In chunks: `acked`, everything below is safe with the receiver; `received`, what the receiver says it has taken in;
 * `limit`, absolute credit; `nextSeq`, what is sent next; `sent`, one more than the highest number ever sent on this
 * handle. `size` is in bytes, null until known. `answers` counts accepts and nacks; `moved` says whether an ack ever
 * raised `acked` or `received`.
 */
export class Sender extends Machine {
  /** @param {Offer} offer @param {{early?: boolean, now?: number}} [options] */
  constructor(offer, { early = false, now = 0 } = {}) {
    super(offer.transfer, offer.handle);
    this.offer = offer;
    this.chunkSize = offer.chunkSize;
    this.size = offer.size;
    this.sha256 = offer.sha256;
    this.acked = 0;
    this.received = 0;
    this.nextSeq = 0;
    this.sent = 0;
    this.limit = early ? 1 : 0;
    this.finished = false;
    this.paused = false;
    this.progressAt = now;
    this.answers = 0;
    this.moved = false;
    this._early = early;
    this._acceptedAt = now;
    /** @type {number[]} when each chunk from `received` to `nextSeq` was last sent */
    this._sentAt = [];
  }

  /** The number of chunks, null while the size is unknown. */
  get chunks() {
    return this.size === null ? null : chunkCount(this.size, this.chunkSize);
  }

  get ackedBytes() {
    return this._bytes(this.acked);
  }

  get receivedBytes() {
    return this._bytes(this.received);
  }

  /** Bytes that went out on this handle. */
  get sentBytes() {
    return this._bytes(this.nextSeq);
  }

  /** Whether chunks were sent that no ack covers. */
  get inFlight() {
    return this.sent > this.acked;
  }

  /** The length in bytes of the longest chunk that is acked, 0 while none is. */
  get longestAcked() {
    return Math.min(this.chunkSize, this.ackedBytes);
  }

  /** When the oldest chunk not in `received` was last sent, or accepted if that came later; null where there is none. */
  get unreceivedSince() {
    const open = this.state === State.OPEN || this.state === State.FINISHING;
    return open && this._sentAt.length > 0 ? Math.max(this._sentAt[0], this._acceptedAt) : null;
  }

  /** @param {number} seq */
  _bytes(seq) {
    const offset = seq * this.chunkSize;
    return this.size === null ? offset : Math.min(offset, this.size);
  }

  get _maySend() {
    return this.state === State.OPEN || (this._early && this.state === State.OFFERED);
  }

  // -- what to send ---------------------------------------------------------------------------------------------------

  /** Return whether there is credit, and something left to send with it: then `nextSpan` says what. */
  chunkDue() {
    if (this.nextSeq >= this.limit || this.paused || this.finished || !this._maySend) {
      return false;
    }
    return this.size === null || this.nextSeq * this.chunkSize < this.size;
  }

  /**
   * Return the span to send next, or null while there is no credit or nothing left.
   *
   * After sending its chunk the driver calls `chunkSent`; a driver that waits in between asks again first, since a nack
   * may have changed the span. Where the size is unknown and the source ends inside the span or before it, the driver
   * calls `end` first.
   *
   * @returns {Span | null}
   */
  nextSpan() {
    if (!this.chunkDue()) {
      return null;
    }
    const offset = this.nextSeq * this.chunkSize;
    const length = this.size === null ? this.chunkSize : Math.min(this.chunkSize, this.size - offset);
    return { seq: this.nextSeq, offset, length };
  }

  /** Note that the chunk of the last `nextSpan` is on its way. @param {number} seq @param {number} now */
  chunkSent(seq, now) {
    if (seq !== this.nextSeq) {
      throw new UsageError(`expected chunk ${this.nextSeq} to be sent, not ${seq}`);
    }
    if (!this.inFlight) {
      this.progressAt = now;
    }
    this.nextSeq = seq + 1;
    this.sent = Math.max(this.sent, this.nextSeq);
    this._sentAt.push(now);
  }

  _forgetReceived() {
    this._sentAt.splice(0, this._sentAt.length - Math.max(0, this.nextSeq - this.received));
  }

  /**
   * Say that the payload has `size` bytes.
   *
   * @param {number} size
   * @throws {UsageError} where that contradicts its offer or what was sent
   */
  end(size) {
    if (this.size !== null && this.size !== size) {
      throw new UsageError(`the source has ${size} bytes, ${this.size} were offered`);
    }
    if (size < 0 || this.sent > chunkCount(size, this.chunkSize)) {
      throw new UsageError(`the source has ${size} bytes, ${this.sent} chunks of ${this.chunkSize} were sent`);
    }
    this.size = size;
  }

  /** Return whether everything has been sent and `finish` has not. */
  finishDue() {
    const chunks = this.chunks;
    return !this.finished && !this.paused && this._maySend && chunks !== null && this.nextSeq >= chunks;
  }

  /**
   * Return the message that ends the payload.
   *
   * @param {string | null} sha256 lower-case hex, null where it is not known
   * @returns {Finish}
   */
  finish(sha256) {
    const chunks = this.chunks;
    if (chunks === null || this.size === null || !this.finishDue()) {
      throw new UsageError("finish before everything was sent");
    }
    if (chunks > MAX_SEQ) {
      throw new UsageError("more chunks than a sequence number can count");
    }
    this.sha256 = sha256 || this.sha256;
    this.finished = true;
    if (this.state === State.OPEN) {
      this._local(Move.FINISH);
    }
    return { type: "finish", handle: this.handle, chunks, size: this.size, sha256 };
  }

  /**
   * Return whether credit was open, chunks were unacked or due, and nothing moved for 60 s (PROTOCOL section 5).
   *
   * To be asked every few seconds: the 60 s begin anew whenever nothing is due, such as while a producer pauses.
   *
   * @param {number} now
   */
  stalled(now) {
    const open = this.state === State.OPEN || this.state === State.FINISHING;
    if (!(open && this.nextSeq < this.limit && (this.inFlight || this.chunkDue()))) {
      this.progressAt = now;
      return false;
    }
    return now - this.progressAt >= STALL_SECONDS;
  }

  // -- what the receiver said -----------------------------------------------------------------------------------------

  /**
   * Take the receiver's answer: where to go on, with which chunk size, up to where.
   *
   * @param {Accept} message
   * @param {number} now
   */
  onAccept(message, now) {
    this._checkAccept(message);
    this._remote(Move.ACCEPT);
    if (message.chunkSize !== this.chunkSize) {
      this.chunkSize = message.chunkSize; // what went early, went in other chunks
      this.nextSeq = this.sent = 0;
      this._sentAt = [];
      this.finished = false;
    }
    this.acked = this.received = message.seq;
    this.limit = message.limit;
    this.nextSeq = Math.max(this.nextSeq, message.seq);
    this.sent = Math.max(this.sent, this.nextSeq);
    this.progressAt = this._acceptedAt = now;
    this.answers += 1;
    this._forgetReceived();
    if (this.finished) {
      this._local(Move.FINISH); // said early, with its only chunk
    }
  }

  /** @param {Accept} message */
  _checkAccept(message) {
    if (message.chunkSize > this.offer.chunkSize || !isChunkSize(message.chunkSize)) {
      throw new ProtocolViolation("accept with a larger chunk size than offered");
    }
    if (message.limit < message.seq) {
      throw new ProtocolViolation("accept with limit below seq");
    }
    const chunks = this.size === null ? null : chunkCount(this.size, message.chunkSize);
    if (chunks !== null && (message.seq > chunks || chunks > MAX_SEQ)) {
      throw new ProtocolViolation("accept beyond the payload, or of more chunks than can be counted");
    }
  }

  /** @param {Reject} _message */
  onReject(_message) {
    this._remote(Move.REJECT);
  }

  /** Take an ack; return whether it moved. @param {Ack} message @param {number} now */
  onAck(message, now) {
    this._checkAck(message);
    this._remote(Move.ACK);
    const moved = message.seq > this.acked;
    if (moved || message.received > this.received || message.limit > this.limit) {
      this.progressAt = now;
    }
    this.moved ||= moved || message.received > this.received;
    this.acked = message.seq;
    this.received = message.received;
    this.limit = message.limit;
    // A receiver may be ahead of a nack that is still on its way: what it holds is not sent again.
    this.nextSeq = Math.max(this.nextSeq, this.acked);
    this._forgetReceived();
    return moved;
  }

  /** @param {Ack} message */
  _checkAck(message) {
    if (message.seq < this.acked || message.seq > message.received) {
      throw new ProtocolViolation("ack falls, or is above received");
    }
    if (message.received > this.sent) {
      throw new ProtocolViolation("ack beyond what was sent");
    }
    if (message.limit < this.limit) {
      throw new ProtocolViolation("limit falls");
    }
  }

  /** Go back to the chunk that the receiver wants again; `finish` is to be said again too. @param {Nack} message */
  onNack(message) {
    if (message.seq < this.acked || message.seq >= this.sent) {
      throw new ProtocolViolation("nack of what is acked, or was not sent");
    }
    this._remote(Move.REWIND);
    this.nextSeq = this.received = message.seq;
    this.answers += 1;
    this._sentAt = [];
    this.finished = false;
  }

  /** Take the end: stored, checked, complete. @param {Done} message */
  onDone(message) {
    if (this.size !== null && message.size !== this.size) {
      throw new ProtocolViolation("done with another size");
    }
    if (this.sha256 !== null && message.sha256 !== this.sha256) {
      throw new ProtocolViolation("done with another digest");
    }
    this._remote(Move.DONE);
    this.moved = true;
    this.size = message.size;
    this.acked = this.received = this.nextSeq = chunkCount(message.size, this.chunkSize);
  }

  /** @param {Abort} message */
  onAbort(message) {
    this._remote(message.final ? Move.ABORT : Move.DETACH);
  }
}
