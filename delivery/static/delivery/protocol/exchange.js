/**
 * The transfers of one connection: offering, answering, chunks and acks, in both directions (PROTOCOL sections 2 to 5).
 *
 * Finds the machine that a message is for, lets it decide, and says what happened. It knows handles and turns; of the
 * socket, its greeting and its end `connection` knows more. Times are monotonic seconds.
 */

import { ProtocolViolation, TransferAborted, UsageError } from "../errors.js";
import { HEADER_BYTES } from "./frames.js";
import { Handles } from "./handles.js";
import { MAX_UNANSWERED_OFFERS, Side } from "./limits.js";
import * as messages from "./messages.js";
import { Receiver, Taken } from "./receiver.js";
import { Sender } from "./sender.js";
import { State } from "./states.js";
import { Turns } from "./turns.js";

/** @import { Chunk } from "./frames.js" */
/** @import { Limits } from "./limits.js" */
/** @import { Abort, DeliveryOffer, Finish, GoingAway, Hello, Message, Reject, UploadOffer, Welcome } from "./messages.js" */
/** @import { Terms } from "./storing.js" */

/**
 * What happened, and what the driver does next.
 *
 * `greeted`: check the login, then call `welcome`. `welcomed`: offers may be made. `offered`: call `accept`, `reject` or
 * `done`. `chunkKept`: keep the data until it is stored, and ask the receiver for its `nextRun`. `finished`: nothing more
 * comes, store the rest, then check the digest. `rewound`: we sent a nack, forget what was kept from
 * `receiver.received` on. `accepted`: read on from `sender.nextSpan`. `acked`: `progressed` says whether the ack moved. `going_away`: send nothing more, the server closes in a moment. `silent`: drop the connection.
 * `helloMissing`: close with 4408.
 *
 * @typedef {{kind: "greeted", hello: Hello}
 *   | {kind: "welcomed", welcome: Welcome}
 *   | {kind: "offered", receiver: Receiver}
 *   | {kind: "chunkKept", receiver: Receiver, chunk: Chunk}
 *   | {kind: "finished", receiver: Receiver}
 *   | {kind: "rewound", receiver: Receiver}
 *   | {kind: "receiverAborted", receiver: Receiver, message: Abort}
 *   | {kind: "accepted", sender: Sender}
 *   | {kind: "acked", sender: Sender, progressed: boolean}
 *   | {kind: "rejected", sender: Sender, message: Reject}
 *   | {kind: "completed", sender: Sender, sha256: string, payload: string | null}
 *   | {kind: "senderAborted", sender: Sender, message: Abort}
 *   | {kind: "goingAway", message: GoingAway}
 *   | {kind: "silent"}
 *   | {kind: "helloMissing"}} Event
 */

/**
 * What both sides of a connection do with transfers.
 *
 * `peer` is what the other side announced, null before that. `senders` and `receivers` hold the live transfers of each
 * direction by handle. `outbox`: the messages that the driver sends next. `goingAway`: a planned close is near.
 */
export class Exchange {
  /** @param {string} side a `Side` @param {Limits} limits ours */
  constructor(side, limits) {
    if (limits.chunkSize + HEADER_BYTES > limits.maxMessage) {
      throw new UsageError("chunkSize and a header do not fit into maxMessage");
    }
    this.side = side;
    this.limits = limits;
    /** @type {Limits | null} */
    this.peer = null;
    /** @type {Message[]} */
    this.outbox = [];
    /** @type {Map<number, Sender>} */
    this.senders = new Map();
    /** @type {Map<number, Receiver>} */
    this.receivers = new Map();
    this.welcomed = false;
    this.goingAway = false;
    this._offered = new Handles(); // by us
    this._incoming = new Handles(); // offered by the peer
    this._turns = new Turns();
    const server = side === Side.SERVER;
    this._theirs = server ? messages.FROM_CLIENT : messages.FROM_SERVER;
    this._ours = server ? messages.FROM_SERVER : messages.FROM_CLIENT;
  }

  /** Return the text of a message from the outbox. @param {Message} message */
  encode(message) {
    return messages.encode(message, this._ours);
  }

  // -- sending --------------------------------------------------------------------------------------------------------

  /** Return how many of our offers wait for an answer; at most 16 may. */
  unanswered() {
    return unanswered(this.senders);
  }

  /** Return whether one more offer may be sent now. */
  canOffer() {
    return this.welcomed && !this.goingAway && this.unanswered() < MAX_UNANSWERED_OFFERS;
  }

  /**
   * Send an offer; its handle and chunk size are set here.
   *
   * @param {UploadOffer | DeliveryOffer} offer
   * @param {{first: boolean, now: number}} options `first`: this transfer was never offered before, so that a small
   *   payload may go as early data (section 2)
   * @returns {Sender} the machine that sends the payload
   * @throws {UsageError} before the welcome, where 16 offers are unanswered, and for what no offer may hold
   */
  offer(offer, { first, now }) {
    if (this.peer === null || !this.canOffer()) {
      throw new UsageError("cannot offer now");
    }
    const chunkSize = Math.min(offer.chunkSize, this.peer.fitting());
    const complete = { ...offer, handle: this._offered.highest + 1, chunkSize };
    messages.encode(complete, this._ours);
    this._offered.take(complete.handle);
    const { size } = complete;
    const early = first && size !== null && size > 0 && size <= Math.min(this.peer.earlyData, chunkSize);
    const sender = new Sender(complete, { early, now });
    this.senders.set(complete.handle, sender);
    this._turns.join(complete.handle);
    this.outbox.push(complete);
    return sender;
  }

  /**
   * Return the sender whose turn it is: one that has a chunk or `finish` to send, each in its turn.
   *
   * Call it again after every chunk, so that a small payload passes between the chunks of a large one.
   */
  nextTurn() {
    return this.goingAway ? null : this._turns.take(this.senders);
  }

  /** Return whether a message waits to be sent, or it is a sender's turn. */
  hasToSend() {
    if (this.outbox.length > 0) {
      return true;
    }
    return !this.goingAway && [...this.senders.values()].some((one) => one.chunkDue() || one.finishDue());
  }

  /**
   * Send `finish`.
   *
   * @param {Sender} sender
   * @param {string | null} sha256 of the whole payload, null where a client does not know it
   */
  finish(sender, sha256) {
    if (sha256 === null && this.side === Side.SERVER) {
      throw new UsageError("the finish of a delivery carries its digest");
    }
    this.outbox.push(sender.finish(sha256));
  }

  /**
   * End a transfer of either direction, or detach it, and tell the peer.
   *
   * @param {Sender | Receiver} machine
   * @param {string} code
   * @param {string} message English, for logs
   * @param {{final: boolean, retryAfter?: number | null}} options `retryAfter`: seconds, with `busy`
   */
  abort(machine, code, message, options) {
    this.outbox.push(machine.abort(code, message, options));
    this._forget(machine);
  }

  // -- answering ------------------------------------------------------------------------------------------------------

  /**
   * Accept an offer from byte `stored` on.
   *
   * @param {Receiver} receiver
   * @param {{stored: number, terms: Terms, now: number, expires?: string | null, hold?: boolean,
   *   size?: number | null}} options as of `Receiver.accept`
   * @returns {Event[]} a `rewound` where its early data came damaged
   */
  accept(receiver, options) {
    this.outbox.push(receiver.accept({ ...options, chunkSize: this.limits.chunkSize }));
    return receiver.owesNack ? this.rewind(receiver, receiver.received, "checksum") : [];
  }

  /** @param {Receiver} receiver @param {string} code @param {string} [message] */
  reject(receiver, code, message = "") {
    this.outbox.push(receiver.reject(code, message));
    this._forget(receiver);
  }

  /** @param {Receiver} receiver @param {{size: number, sha256: string, payload?: string | null}} stored */
  done(receiver, stored) {
    this.outbox.push(receiver.done(stored));
    this._forget(receiver);
  }

  /**
   * Send a nack, or an abort instead of the third one of the same chunk.
   *
   * A late report that something was `lost` changes nothing: it is stored meanwhile, or was asked for again already.
   *
   * @param {Receiver} receiver
   * @param {number} seq
   * @param {string} code
   * @returns {Event[]}
   */
  rewind(receiver, seq, code) {
    if (code === "lost" && !(receiver.stored <= seq && seq < receiver.received)) {
      return []; // a second nack would send the sender back when it has repeated everything
    }
    const answer = receiver.lost(seq, code);
    this.outbox.push(answer);
    if (answer.type === "abort") {
      return this._ended(receiver, { kind: "receiverAborted", receiver, message: answer });
    }
    return [{ kind: "rewound", receiver }];
  }

  /**
   * Put every ack that is due into the outbox; with `atOnce` every one that has anything new to say.
   *
   * @param {number} now
   * @param {{atOnce?: boolean}} [options]
   */
  queueAcks(now, options) {
    for (const receiver of this.receivers.values()) {
      const ack = receiver.nextAck(now, options);
      if (ack !== null) {
        this.outbox.push(ack);
      }
    }
  }

  // -- what comes -----------------------------------------------------------------------------------------------------

  /** @param {Receiver} receiver @param {Chunk} chunk @param {number} now @returns {Event[]} */
  _takeChunk(receiver, chunk, now) {
    let taken;
    try {
      taken = receiver.onChunk(chunk, now);
    } catch (error) {
      if (error instanceof TransferAborted) {
        return this._abortReceiver(receiver, error);
      }
      throw error;
    }
    if (taken === Taken.KEPT) {
      return [{ kind: "chunkKept", receiver, chunk }];
    }
    if (taken === Taken.DAMAGED && receiver.state !== State.OFFERED) {
      return this.rewind(receiver, receiver.received, "checksum"); // before the accept no nack may come
    }
    return [];
  }

  /** @param {Receiver} receiver @param {TransferAborted} aborted @returns {Event[]} */
  _abortReceiver(receiver, aborted) {
    const message = receiver.abort(String(aborted.code), aborted.detail, { final: aborted.final });
    this.outbox.push(message);
    return this._ended(receiver, { kind: "receiverAborted", receiver, message });
  }

  /** Take a message that belongs to a transfer. @param {Message} message @param {number} now @returns {Event[]} */
  _takeMessage(message, now) {
    switch (message.type) {
      case "offer":
        return this._onOffer(message, now);
      case "finish":
        return this._onFinish(message);
      case "abort":
        return this._onAbort(message);
      case "ack":
      case "nack":
        return this._toSender(message, this._sender(message.handle), now);
      case "accept":
      case "reject":
      case "done":
        return this._toSender(message, this._sender(message.handle, message.transfer), now);
      default:
        return [];
    }
  }

  /**
   * @param {Message} message
   * @param {Sender | null} sender null where it is no longer live
   * @param {number} now
   * @returns {Event[]}
   */
  _toSender(message, sender, now) {
    if (sender === null) {
      return [];
    }
    switch (message.type) {
      case "ack":
        return [{ kind: "acked", sender, progressed: sender.onAck(message, now) }];
      case "nack":
        sender.onNack(message);
        return [];
      case "accept":
        sender.onAccept(message, now);
        return [{ kind: "accepted", sender }];
      case "reject":
        sender.onReject(message);
        return this._ended(sender, { kind: "rejected", sender, message });
      case "done":
        sender.onDone(message);
        return this._ended(sender, { kind: "completed", sender, sha256: message.sha256, payload: message.payload });
      default:
        return [];
    }
  }

  /** @param {UploadOffer | DeliveryOffer} offer @param {number} now @returns {Event[]} */
  _onOffer(offer, now) {
    this._incoming.take(offer.handle);
    if (unanswered(this.receivers) >= MAX_UNANSWERED_OFFERS) {
      throw new ProtocolViolation("too many unanswered offers", 4429);
    }
    const earlyData = offer.chunkSize <= this.limits.chunkSize ? this.limits.earlyData : 0;
    const receiver = new Receiver(offer, { earlyData, now });
    this.receivers.set(offer.handle, receiver);
    return [{ kind: "offered", receiver }];
  }

  /** @param {Finish} message @returns {Event[]} */
  _onFinish(message) {
    const receiver = this.receivers.get(message.handle);
    if (receiver === undefined) {
      this._incoming.check(message.handle);
      return [];
    }
    if (this.side === Side.CLIENT && message.sha256 === null) {
      throw new ProtocolViolation("finish of a delivery without its digest");
    }
    return receiver.onFinish(message) ? [{ kind: "finished", receiver }] : [];
  }

  /** An abort may be for either direction; the transfer's id tells which. @param {Abort} message @returns {Event[]} */
  _onAbort(message) {
    const sender = this.senders.get(message.handle);
    if (sender?.transfer === message.transfer) {
      sender.onAbort(message);
      return this._ended(sender, { kind: "senderAborted", sender, message });
    }
    const receiver = this.receivers.get(message.handle);
    if (receiver?.transfer === message.transfer) {
      receiver.onAbort(message);
      return this._ended(receiver, { kind: "receiverAborted", receiver, message });
    }
    if (!this._offered.has(message.handle)) {
      this._incoming.check(message.handle);
    }
    return [];
  }

  /**
   * Return our live sender of a handle, null where it is no longer live.
   *
   * @param {number} handle
   * @param {string} [transfer]
   */
  _sender(handle, transfer) {
    const sender = this.senders.get(handle);
    if (sender === undefined) {
      this._offered.check(handle);
      return null;
    }
    if (transfer !== undefined && sender.transfer !== transfer) {
      throw new ProtocolViolation("handle and transfer do not match");
    }
    return sender;
  }

  /** @param {Sender | Receiver} machine @param {Event} event @returns {Event[]} */
  _ended(machine, event) {
    this._forget(machine);
    return [event];
  }

  /** @param {Sender | Receiver} machine */
  _forget(machine) {
    if (machine instanceof Receiver) {
      this.receivers.delete(machine.handle);
    } else if (this.senders.delete(machine.handle)) {
      this._turns.leave(machine.handle);
    }
  }
}

/** @param {ReadonlyMap<number, Sender | Receiver>} machines */
function unanswered(machines) {
  let count = 0;
  for (const machine of machines.values()) {
    count += Number(machine.state === State.OFFERED);
  }
  return count;
}
