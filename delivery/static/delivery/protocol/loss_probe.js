/**
 * Finds chunks that something on the way swallowed (PROTOCOL section 5, "Swallowed messages").
 *
 * Messages arrive in order. Where the pong to a ping that was sent behind a chunk comes back, and the receiver still does
 * not count that chunk, it will never arrive. A second ping, one second later, gives a receiver of an older version the
 * time to report. Times are monotonic seconds.
 */

/** @import { Sender } from "./sender.js" */

const PROBE_AFTER_SECONDS = 5;
const CONFIRM_AFTER_SECONDS = 1;

/**
 * A sender as it was when the first ping went out.
 *
 * @typedef {{sender: Sender, received: number, answers: number}} Suspect
 */

/** @param {Suspect} suspect @returns {boolean} whether its receiver has counted no chunk and answered nothing since */
function unmoved({ sender, received, answers }) {
  return sender.live && sender.received === received && sender.answers === answers;
}

/** @param {Sender} sender */
function dueAt(sender) {
  const since = sender.unreceivedSince;
  return since === null ? Infinity : since + PROBE_AFTER_SECONDS;
}

/** The one probe of a connection: two pings at most are sent for the senders that were due at its start. */
export class LossProbe {
  constructor() {
    /** @type {Suspect[]} */
    this._suspects = [];
    /** @type {number | null} the id of the ping whose pong is awaited */
    this._ping = null;
    /** @type {number | null} when the second ping is due; null before the first pong */
    this._confirmAt = null;
  }

  /**
   * Return whether a ping is to be sent now; then call `pinged`.
   *
   * @param {Iterable<Sender>} senders
   * @param {number} now
   */
  pingDue(senders, now) {
    if (this._ping !== null || (this._confirmAt !== null && now < this._confirmAt)) {
      return false;
    }
    if (this._confirmAt !== null) {
      this._suspects = this._suspects.filter(unmoved);
      this._confirmAt = this._suspects.length > 0 ? this._confirmAt : null;
    }
    if (this._suspects.length === 0) {
      const due = [...senders].filter((sender) => now >= dueAt(sender));
      this._suspects = due.map((sender) => ({ sender, received: sender.received, answers: sender.answers }));
    }
    return this._suspects.length > 0;
  }

  /** Note the id of the ping that was sent. @param {number} ping */
  pinged(ping) {
    this._ping = ping;
  }

  /** Take a pong; return whether it proves that messages were swallowed. @param {number} ping @param {number} now */
  onPong(ping, now) {
    if (ping !== this._ping) {
      return false;
    }
    this._ping = null;
    this._suspects = this._suspects.filter(unmoved);
    if (this._suspects.length > 0 && this._confirmAt !== null) {
      return true;
    }
    this._confirmAt = this._suspects.length > 0 ? now + CONFIRM_AFTER_SECONDS : null;
    return false;
  }

  /**
   * Return the time at which `pingDue` has to be asked again; infinity where a pong or a chunk comes first.
   *
   * @param {Iterable<Sender>} senders
   */
  wakeAt(senders) {
    if (this._ping !== null) {
      return Infinity;
    }
    return this._confirmAt ?? Math.min(...[...senders].map(dueAt), Infinity);
  }
}
