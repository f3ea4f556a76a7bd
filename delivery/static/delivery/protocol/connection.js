/**
 * What belongs to one whole connection: greeting, heartbeats, going away (PROTOCOL sections 1, 5 and 6).
 *
 * The same class serves both ends; `Side` is all it knows of where it runs. Feed it what comes with `receiveText` and
 * `receiveBytes`, act on the events that they return, send what `outbox` holds, and then chunks in the order that
 * `nextTurn` gives. Times are monotonic seconds.
 */

import { MessagesLost, ProtocolViolation, UsageError } from "../errors.js";
import { GOING_AWAY_CODES } from "./codes.js";
import { Exchange } from "./exchange.js";
import * as frames from "./frames.js";
import { Heartbeat } from "./heartbeat.js";
import { Side, announced } from "./limits.js";
import { LossProbe } from "./loss_probe.js";
import * as messages from "./messages.js";
import { utf8Length } from "./rules.js";

/** @import { Event } from "./exchange.js" */
/** @import { Limits } from "./limits.js" */
/** @import { GoingAway, Hello, Message, Welcome } from "./messages.js" */

const HELLO_SECONDS = 5;
// A driver that cannot write stops reading. Should it not, a peer that floods it with pings gets no more answers.
const MOST_QUEUED_PONGS = 256;

/** One end of one connection. */
export class Connection extends Exchange {
  /**
   * @param {string} side a `Side`
   * @param {Limits} limits ours
   * @param {{now: number, heartbeat?: number}} options `heartbeat` in seconds, as the server's welcome says
   */
  constructor(side, limits, { now, heartbeat = 20 }) {
    super(side, limits);
    this._greeted = false;
    this._helloUntil = now + HELLO_SECONDS;
    this._pulse = new Heartbeat(heartbeat, { now, server: side === Side.SERVER });
    this._probe = new LossProbe();
  }

  get heartbeat() {
    return this._pulse.interval;
  }

  // -- hello ----------------------------------------------------------------------------------------------------------

  /** Client: say hello, first of all. @param {Hello} hello */
  hello(hello) {
    if (this.side !== Side.CLIENT || this._greeted) {
      throw new UsageError("hello is said once, by the client");
    }
    this._greeted = true;
    this.outbox.push(hello);
  }

  /** Server: answer hello; from now on offers may come and go. @param {Welcome} welcome */
  welcome(welcome) {
    if (this.side !== Side.SERVER || this.peer === null || this.welcomed) {
      throw new UsageError("welcome is said once, by the server, after hello");
    }
    this._pulse.interval = welcome.heartbeat;
    this._pulse.pings = true;
    this.welcomed = true;
    this.outbox.push(welcome);
  }

  // -- what comes -----------------------------------------------------------------------------------------------------

  /**
   * Take a text message and return what happened.
   *
   * @param {string} text
   * @param {number} now
   * @returns {Event[]}
   * @throws {ProtocolViolation} the driver closes the connection with its code and reason
   */
  receiveText(text, now) {
    this._pulse.heard = now;
    if (this._discards()) {
      return [];
    }
    if (text.length > this._largest || (text.length * 3 > this._largest && utf8Length(text) > this._largest)) {
      throw new ProtocolViolation("message too big", 1009);
    }
    const message = messages.decode(text, this._theirs);
    if (!this.welcomed) {
      this._expectGreeting(message);
    } else if (message.type === "hello" || message.type === "welcome") {
      throw new ProtocolViolation(`${message.type} twice`);
    }
    return this._take(message, now);
  }

  /**
   * Take a binary message and return what happened.
   *
   * @param {ArrayBuffer | Uint8Array} data
   * @param {number} now
   * @returns {Event[]}
   * @throws {ProtocolViolation} as `receiveText`
   */
  receiveBytes(data, now) {
    this._pulse.heard = now;
    if (this._discards()) {
      return [];
    }
    if (data.byteLength > this._largest) {
      throw new ProtocolViolation("message too big", 1009);
    }
    if (!this.welcomed) {
      const early = this.side === Side.SERVER && !this._greeted;
      throw early
        ? new ProtocolViolation("binary message before hello", 1003)
        : new ProtocolViolation("chunk before welcome");
    }
    const chunk = frames.decode(data);
    const receiver = this.receivers.get(chunk.handle);
    if (receiver === undefined) {
      this._incoming.check(chunk.handle);
      return [];
    }
    return this._takeChunk(receiver, chunk, now);
  }

  /** The largest message in bytes that the peer may send now: a server takes no more than that before `welcome`. */
  get _largest() {
    return this.side === Side.SERVER && !this.welcomed ? messages.MAX_CONTROL_BYTES : this.limits.maxMessage;
  }

  /** Return whether we said going_away: what still comes until the close is answered has no effect (section 6). */
  _discards() {
    return this.goingAway && this.side === Side.SERVER;
  }

  /** @param {Message} message */
  _expectGreeting(message) {
    if (this.side === Side.CLIENT) {
      if (message.type !== "welcome" && message.type !== "going_away") {
        throw new ProtocolViolation("expected welcome first");
      }
    } else if (this._greeted) {
      throw new ProtocolViolation("message before welcome");
    } else if (message.type !== "hello") {
      throw new ProtocolViolation("expected hello first");
    } else {
      this._greeted = true;
    }
  }

  /** @param {Message} message @param {number} now @returns {Event[]} */
  _take(message, now) {
    switch (message.type) {
      case "hello":
        this.peer = announced(message);
        return [{ kind: "greeted", hello: message }];
      case "welcome":
        this.peer = announced(message);
        this._pulse.interval = message.heartbeat;
        this._pulse.pings = true;
        this.welcomed = true;
        return [{ kind: "welcomed", welcome: message }];
      case "going_away":
        this.goingAway = true;
        return [{ kind: "goingAway", message }];
      case "ping":
        this._onPing(message.id, now);
        return [];
      case "pong":
        if (this._probe.onPong(message.id, now)) {
          throw new MessagesLost("messages lost on the way");
        }
        return [];
      default:
        return this._takeMessage(message, now);
    }
  }

  /** @param {number} id @param {number} now */
  _onPing(id, now) {
    if (this.outbox.length < MOST_QUEUED_PONGS) {
      this.queueAcks(now, { atOnce: true });
      this.outbox.push({ type: "pong", id });
    }
  }

  // -- going away -----------------------------------------------------------------------------------------------------

  /**
   * Server: say that the connection closes in a moment, after the last acks; what still comes is discarded.
   *
   * @param {string} reason
   * @param {number | null} [retryAfter] seconds
   */
  leave(reason, retryAfter = null) {
    if (this.side !== Side.SERVER || !GOING_AWAY_CODES.has(reason)) {
      throw new UsageError(`cannot go away for ${reason}`);
    }
    this.goingAway = true;
    this._pulse.pings = false;
    this.outbox.push(/** @type {GoingAway} */ ({ type: "going_away", reason, retryAfter }));
  }

  // -- time -----------------------------------------------------------------------------------------------------------

  /** Note that a message went out. @param {number} now */
  sent(now) {
    this._pulse.said = now;
  }

  /** Send a ping now, whether or not one is due: something hints that the connection may be dead. */
  ping() {
    this.outbox.push(this._pulse.nextPing());
  }

  /** When anything last came, in monotonic seconds. */
  get heardAt() {
    return this._pulse.heard;
  }

  /**
   * Do what time alone asks for; call it a few times a heartbeat, and at `wakeAt`.
   *
   * @param {number} now
   * @returns {Event[]}
   */
  tick(now) {
    if (this._helloMissing && now >= this._helloUntil) {
      return [{ kind: "helloMissing" }];
    }
    if (this._pulse.silent(now)) {
      return [{ kind: "silent" }];
    }
    const ping = this._pulse.ping(now);
    if (ping !== null) {
      this.outbox.push(ping);
    }
    if (!this.goingAway && this._probe.pingDue(this.senders.values(), now)) {
      const behind = this._pulse.nextPing();
      this._probe.pinged(behind.id);
      this.outbox.push(behind);
    }
    return [];
  }

  /** Return the time at which `tick` or a receiver wants to be asked again. */
  wakeAt() {
    if (this._helloMissing) {
      return this._helloUntil;
    }
    const receivers = [...this.receivers.values()].map((receiver) => receiver.wakeAt() ?? Infinity);
    return Math.min(this._pulse.wakeAt(), this._probe.wakeAt(this.senders.values()), ...receivers);
  }

  get _helloMissing() {
    return this.side === Side.SERVER && !this._greeted;
  }
}
