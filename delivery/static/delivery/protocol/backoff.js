/**
 * What a client does after its connection closed: stop, wait how long, with which chunk size (PROTOCOL section 6).
 *
 * Pure decisions: random numbers come in as arguments, and the caller sleeps. Times are seconds, sizes bytes.
 */

import { Reaction, reactionTo } from "./codes.js";
import { CHUNK_SIZE_MIN } from "./frames.js";

export const WAIT_WITHOUT_ADVICE_SECONDS = 5;
const LOSSES = new Set([1006, 1011]); // 1006 also where the client gave up on a silent server
const LOSSES_THAT_HALVE = 3;
const CLOSES_THAT_DO_NOT_COUNT = new Set([1001, 1012, 1013, 4429]); // nor do they end a row of losses
const CALM_SECONDS = 60;

/**
 * How a connection ended, as its client saw it.
 *
 * `code` is the close code, 1006 where the TCP connection was lost or the client gave a silent server up. `retryAfter` is
 * the server's advice from `going_away`. `stuck`: chunks were sent or a delivery was accepted, and neither `seq` nor
 * `received` of any transfer moved. `welcomedSeconds`: how long the connection lived after its welcome. `chunkSize`: the
 * largest chunk that the client could send, null where it did not come to that.
 *
 * @typedef {{code: number, retryAfter?: number | null, stuck?: boolean, welcomedSeconds?: number,
 *   chunkSize?: number | null}} Closed
 */

/**
 * What to do next: give up (`stop`), or reconnect after `wait` seconds with chunks of at most `chunkSize` bytes. `shrunk`:
 * the server refused larger ones; the size is to be remembered for this URL.
 *
 * @typedef {{stop: boolean, wait: number, chunkSize: number, shrunk: boolean}} Plan
 */

/** The memory that a client keeps from connection to connection. */
export class Recovery {
  /** @param {{chunkSize: number, initial?: number, maximum?: number}} options the bounds follow `welcome.retry` */
  constructor({ chunkSize, initial = 0.5, maximum = 10 }) {
    this.chunkSize = chunkSize;
    this.initial = initial;
    this.maximum = maximum;
    this.attempt = 0;
    this.losses = 0;
    this._guessed = false; // halved after losses, and no chunk of this size was acked yet
  }

  /**
   * Note that an ack moved: the backoff starts again from its first step.
   *
   * @param {number} [chunkBytes] the length of an acked chunk
   * @returns {number | null} the chunk size that this proves to be right after losses, which is to be remembered for this
   *   URL; null mostly
   */
  progressed(chunkBytes = 0) {
    this.attempt = 0;
    this.losses = 0;
    if (!this._guessed || chunkBytes < this.chunkSize) {
      return null;
    }
    this._guessed = false;
    return this.chunkSize;
  }

  /** Return what to do after a close. @param {Closed} how @param {number} random uniform in 0..1 @returns {Plan} */
  closed(how, random) {
    if ((how.welcomedSeconds ?? 0) >= CALM_SECONDS) {
      this.attempt = 0;
    }
    const sent = Math.min(this.chunkSize, how.chunkSize || this.chunkSize);
    const reaction = reactionTo(how.code);
    if (reaction === Reaction.STOP) {
      return { stop: true, wait: 0, chunkSize: this.chunkSize, shrunk: false };
    }
    if (reaction === Reaction.SHRINK) {
      return this._shrink(sent, random);
    }
    this._count(how, sent);
    const wait = this._wait(reaction, how.retryAfter ?? null, random);
    return { stop: false, wait, chunkSize: this.chunkSize, shrunk: false };
  }

  /**
   * Return what to do after a connection that was never established.
   *
   * @param {number} random uniform in 0..1
   * @returns {Plan}
   */
  refused(random) {
    return { stop: false, wait: this._backoff(random), chunkSize: this.chunkSize, shrunk: false };
  }

  /**
   * Count losses in a row on which nothing got through; after three of them chunks are halved.
   *
   * Something on the way may cut what is too big for it without a word, and a slow line may never bring a whole chunk in
   * time. At the floor nothing smaller can be tried, and it is only backed off.
   *
   * @param {Closed} how
   * @param {number} sent
   */
  _count(how, sent) {
    if (CLOSES_THAT_DO_NOT_COUNT.has(how.code)) {
      return;
    }
    this.losses = LOSSES.has(how.code) && how.stuck ? this.losses + 1 : 0;
    if (this.losses < LOSSES_THAT_HALVE) {
      return;
    }
    this.losses = 0;
    if (sent > CHUNK_SIZE_MIN) {
      this.chunkSize = sent / 2;
      this._guessed = true;
    }
  }

  /** @param {number} sent @param {number} random @returns {Plan} */
  _shrink(sent, random) {
    this.losses = 0;
    if (sent <= CHUNK_SIZE_MIN) {
      return { stop: true, wait: 0, chunkSize: sent, shrunk: false };
    }
    this.chunkSize = sent / 2;
    this._guessed = false;
    return { stop: false, wait: this._backoff(random), chunkSize: this.chunkSize, shrunk: true };
  }

  /** @param {string} reaction @param {number | null} retryAfter @param {number} random */
  _wait(reaction, retryAfter, random) {
    if (reaction === Reaction.WAIT) {
      this.attempt += 1;
      return retryAfter ?? WAIT_WITHOUT_ADVICE_SECONDS;
    }
    if (reaction === Reaction.RETURN && retryAfter !== null) {
      this.attempt += 1; // advice holds for the first attempt after this close: later ones back off
      return retryAfter;
    }
    return this._backoff(random);
  }

  /** Full jitter: attempt n waits a uniform time in 0 .. min(maximum, initial * 2^n). @param {number} random */
  _backoff(random) {
    const wait = random * Math.min(this.maximum, this.initial * 2 ** Math.min(this.attempt, 60));
    this.attempt += 1;
    return wait;
  }
}
