/**
 * The states of a transfer on one connection, and the one table of moves between them.
 *
 * Sender and receiver share the table; this module does not know which of them it serves. A move that the table does not
 * list is a violation when the peer asks for it and misuse when our own driver does.
 */

import { ProtocolViolation, UsageError } from "../errors.js";
import { ABORT_CODES, FINAL_ABORT_CODES } from "./codes.js";
/** @import { Abort } from "./messages.js" */

/** @enum {string} */
export const State = /** @type {const} */ ({
  OFFERED: "offered", // offered, not answered
  OPEN: "open", // accepted: chunks and acks flow
  FINISHING: "finishing", // finish sent or taken: frozen until done
  DONE: "done",
  REJECTED: "rejected",
  ABORTED: "aborted", // ended for good
  DETACHED: "detached", // ended on this connection only
});

/** @enum {string} */
export const Move = /** @type {const} */ ({
  ACCEPT: "accept",
  REJECT: "reject",
  FINISH: "finish",
  REWIND: "nack",
  ACK: "ack",
  DONE: "done",
  ABORT: "abort",
  DETACH: "detach",
});

/** @type {Readonly<Record<string, Readonly<Record<string, string>>>>} by state, then by move */
export const TRANSITIONS = {
  [State.OFFERED]: {
    [Move.ACCEPT]: State.OPEN,
    [Move.REJECT]: State.REJECTED,
    [Move.DONE]: State.DONE,
    [Move.ABORT]: State.ABORTED,
    [Move.DETACH]: State.DETACHED,
  },
  [State.OPEN]: {
    [Move.ACK]: State.OPEN,
    [Move.REWIND]: State.OPEN,
    [Move.FINISH]: State.FINISHING,
    [Move.ABORT]: State.ABORTED,
    [Move.DETACH]: State.DETACHED,
  },
  [State.FINISHING]: {
    [Move.ACK]: State.FINISHING,
    [Move.REWIND]: State.OPEN,
    [Move.DONE]: State.DONE,
    [Move.ABORT]: State.ABORTED,
    [Move.DETACH]: State.DETACHED,
  },
};

/** @type {ReadonlySet<string>} */
export const LIVE = new Set([State.OFFERED, State.OPEN, State.FINISHING]);

/** What the sending and the receiving side of a transfer have in common: a state that moves by the table. */
export class Machine {
  /** @param {string} transfer @param {number} handle */
  constructor(transfer, handle) {
    this.transfer = transfer;
    this.handle = handle;
    /** @type {string} */
    this.state = State.OFFERED;
  }

  get live() {
    return LIVE.has(this.state);
  }

  /**
   * Move because the peer said so.
   *
   * @protected
   * @param {string} move
   * @throws {ProtocolViolation} where the table has no such move
   */
  _remote(move) {
    const after = TRANSITIONS[this.state]?.[move];
    if (after === undefined) {
      throw new ProtocolViolation(`${move} of a transfer that is ${this.state}`);
    }
    this.state = after;
  }

  /**
   * Move because our driver said so.
   *
   * @protected
   * @param {string} move
   * @throws {UsageError} where the table has no such move
   */
  _local(move) {
    const after = TRANSITIONS[this.state]?.[move];
    if (after === undefined) {
      throw new UsageError(`cannot ${move} a transfer that is ${this.state}`);
    }
    this.state = after;
  }

  /**
   * End the transfer (`final`) or detach it from this connection; return the message that says so.
   *
   * @param {string} code
   * @param {string} message English, for logs
   * @param {{final: boolean, retryAfter?: number | null}} options `retryAfter` in seconds
   * @returns {Abort}
   */
  abort(code, message, { final, retryAfter = null }) {
    if (!ABORT_CODES.has(code) || final !== FINAL_ABORT_CODES.has(code)) {
      throw new UsageError(`no ${final ? "final" : "detaching"} abort is called ${code}`);
    }
    this._local(final ? Move.ABORT : Move.DETACH);
    return { type: "abort", transfer: this.transfer, handle: this.handle, code, message, final, retryAfter };
  }
}
