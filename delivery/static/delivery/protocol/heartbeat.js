/** When a side pings, and when its peer has been silent for too long (PROTOCOL section 5). Times are monotonic seconds. */

/** @import { Ping } from "./messages.js" */

const SILENT_HEARTBEATS = 2.5;

/**
 * The pulse of one connection. `interval` is one heartbeat in seconds; pings are sent only while `pings` is set. `heard`:
 * when anything last came. `said`: when a message was last sent. A server pings after a heartbeat of either silence, a
 * client only after one of its own.
 */
export class Heartbeat {
  /** @param {number} interval @param {{now: number, server: boolean}} options */
  constructor(interval, { now, server }) {
    this.interval = interval;
    this.heard = now;
    this.said = now;
    this.pings = false;
    this._server = server;
    this._pinged = now;
    this._id = 0;
  }

  /** Return whether nothing at all came for 2.5 heartbeats. @param {number} now */
  silent(now) {
    return now >= this._silentAt();
  }

  /** Return the ping that is due now, null where none is. @param {number} now @returns {Ping | null} */
  ping(now) {
    if (!this.pings || now < this._pingAt()) {
      return null;
    }
    this._pinged = now;
    return this.nextPing();
  }

  /** Return a ping with an id of its own, whether or not one is due. @returns {Ping} */
  nextPing() {
    this._id += 1;
    return { type: "ping", id: this._id };
  }

  /** Return the time at which one of the two has to be asked again. */
  wakeAt() {
    return this.pings ? Math.min(this._silentAt(), this._pingAt()) : this._silentAt();
  }

  _silentAt() {
    return this.heard + SILENT_HEARTBEATS * this.interval;
  }

  _pingAt() {
    const quietSince = this._server ? Math.min(this.heard, this.said) : this.said;
    return Math.max(quietSince, this._pinged) + this.interval;
  }
}
