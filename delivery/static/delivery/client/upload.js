/**
 * One upload across connections, and its reading ahead on one of them.
 *
 * `Upload` is what a program holds: it knows the source, the offer and the outcome. `UploadFeed` makes the chunks of one
 * connection ready before their turn comes.
 */

import { DeliveryError, TransferAborted, UsageError } from "../errors.js";
import { encode } from "../protocol/frames.js";
import { Speed } from "./progress.js";
import { RateLimit } from "./rate.js";

/** @import { UploadOffer } from "../protocol/messages.js" */
/** @import { Sender } from "../protocol/sender.js" */
/** @import { Progress } from "./progress.js" */
/** @import { Source } from "./sources.js" */

const READ_BYTES = 2 * 1024 * 1024; // read from the source at a time
const BACKOFF_INITIAL_SECONDS = 0.5;
const BACKOFF_MAX_SECONDS = 10;
const CHUNKS_A_SECOND = 4; // at least, where the rate is limited

/**
 * The server has stored all of a payload and its digest agrees. `payload`: its id there; `size` in bytes.
 *
 * @typedef {{transfer: string, payload: string | null, name: string, size: number, sha256: string}} Receipt
 */

/** Return the monotonic seconds of this thread. */
export function monotonic() {
  return performance.now() / 1000;
}

/** A running upload. `receipt` is a promise of its `Receipt`; it is rejected with the error that ended the upload. */
export class Upload {
  /**
   * @param {Source} source
   * @param {UploadOffer} offer
   * @param {{resumed: boolean, rate: number | null, onProgress: ((progress: Progress) => void) | null,
   *   wake: () => void}} options `rate` in bytes a second
   */
  constructor(source, offer, { resumed, rate, onProgress, wake }) {
    this.source = source;
    this.offeredBefore = resumed;
    this.paused = false;
    this.retryAt = 0;
    /** @type {UploadFeed | null} */
    this.feed = null;
    this.mustTell = false; // cancelled while detached: the server is told on the next connection
    this.done = false;
    this.limit = new RateLimit(rate, monotonic());
    this._offer = offer;
    this._onProgress = onProgress;
    this._wake = wake;
    this._attempt = 0;
    this._stored = 0;
    /** @type {"done" | "failed" | null} */
    this._ended = null;
    /** @type {(receipt: Receipt) => void} */
    this._resolve = () => {};
    /** @type {(error: unknown) => void} */
    this._reject = () => {};
    /** @type {Promise<Receipt>} */
    this.receipt = new Promise((resolve, reject) => {
      this._resolve = resolve;
      this._reject = reject;
    });
    this.receipt.catch(() => {}); // nobody has to await a handle
  }

  // -- for the program ------------------------------------------------------------------------------------------------

  /** The id under which this upload can be resumed. */
  get transfer() {
    return this._offer.transfer;
  }

  get name() {
    return this._offer.name;
  }

  /** How far it is. @returns {Progress} */
  get progress() {
    const now = monotonic();
    const sender = this.feed?.sender ?? null;
    const { size } = this.source;
    this._stored = Math.max(this._stored, sender?.ackedBytes ?? 0);
    const received = Math.max(this._stored, sender?.receivedBytes ?? 0);
    const left = size === null ? null : size - received;
    return {
      transfer: this.transfer,
      size,
      sent: Math.max(received, sender?.sentBytes ?? 0),
      received,
      stored: this._stored,
      phase: this._phase(sender),
      speed: this.feed?.speed?.speed(now) ?? 0,
      secondsLeft: this.feed?.speed?.secondsLeft(left, now) ?? null,
    };
  }

  /** @param {Sender | null} sender @returns {Progress["phase"]} */
  _phase(sender) {
    if (this._ended !== null) {
      return this._ended;
    }
    if (this.paused) {
      return "paused";
    }
    if (!this.feed?.accepted) {
      return "waiting";
    }
    return sender?.finished ? "checking" : "moving";
  }

  /** Send nothing more until `resume`; what is on its way is still stored. */
  pause() {
    this.paused = true;
    this.feed?.adjust();
    this.report();
  }

  /** Go on after `pause`. */
  resume() {
    this.paused = false;
    this.feed?.adjust();
    this.report();
    this._wake();
  }

  /** Send at most `rate` bytes a second from now on, null for as fast as it goes. @param {number | null} rate */
  setRate(rate) {
    this.limit.change(checkedRate(rate), monotonic());
    this._wake();
  }

  /**
   * End it for good: the server forgets what it has.
   *
   * @param {DeliveryError} [error] with which the receipt is rejected
   */
  cancel(error = new TransferAborted("cancelled", "cancelled here")) {
    if (this.done) {
      return;
    }
    if (this.feed) {
      this.feed.abort("cancelled", { final: true });
    } else {
      this.mustTell = this.offeredBefore;
    }
    this.fail(error);
    this._wake();
  }

  // -- for the connection ---------------------------------------------------------------------------------------------

  /** Return whether it is to be offered now. @param {number} now */
  due(now) {
    return this.feed === null && (this.mustTell || (!this.done && !this.paused && now >= this.retryAt));
  }

  /** Return what to offer. @param {number} chunkSize the largest to send, bytes @returns {UploadOffer} */
  offer(chunkSize) {
    const { rate } = this.limit;
    const paced = rate === null ? chunkSize : 2 ** Math.floor(Math.log2(Math.max(4096, rate / CHUNKS_A_SECOND)));
    return { ...this._offer, size: this.source.size, chunkSize: Math.min(chunkSize, paced) };
  }

  /**
   * Tell the program how far it is. A callback that throws ends this upload, and no other.
   *
   * @param {{progressed?: boolean}} [options] `progressed`: an ack moved
   */
  report({ progressed = false } = {}) {
    if (progressed) {
      this._attempt = 0;
    }
    if (this.done || this._onProgress === null) {
      return;
    }
    try {
      this._onProgress(this.progress);
    } catch (error) {
      this._onProgress = null;
      this.feed?.abort("cancelled", { final: true });
      this.fail(error);
    }
  }

  /**
   * Offer again after `retryAfter` seconds, or after a backoff where the server named none; return the wait in seconds.
   *
   * @param {number | null} retryAfter
   */
  postpone(retryAfter) {
    const most = Math.min(BACKOFF_MAX_SECONDS, BACKOFF_INITIAL_SECONDS * 2 ** Math.min(this._attempt, 10));
    const wait = retryAfter ?? Math.random() * most;
    this._attempt += 1;
    this.retryAt = monotonic() + wait;
    return wait;
  }

  /** @param {number} size @param {string} sha256 @param {string | null} payload */
  complete(size, sha256, payload) {
    if (this.done) {
      return;
    }
    this._stored = size;
    this.source.size = size;
    this._ended = "done";
    this.report();
    if (!this.done) {
      this._settle();
      this._resolve({ transfer: this.transfer, payload, name: this.name, size, sha256 });
    }
  }

  /** @param {unknown} error */
  fail(error) {
    if (this.done) {
      return;
    }
    this._ended = "failed";
    this._settle();
    this._reject(error);
  }

  _settle() {
    this.done = true;
    this.feed?.close();
    this.feed = null;
    void this.source.close();
  }
}

/** @param {number | null} rate @returns {number | null} */
export function checkedRate(rate) {
  if (rate !== null && !(Number.isFinite(rate) && rate > 0)) {
    throw new UsageError(`expected a rate above 0 in bytes a second, or null, not ${rate}`);
  }
  return rate;
}

/** What is read ahead for an upload on one connection. */
export class UploadFeed {
  /**
   * @param {Upload} upload
   * @param {Sender} sender
   * @param {{wake: () => void, abort: (feed: UploadFeed, code: string, options: {final: boolean}) => void}} connection
   */
  constructor(upload, sender, connection) {
    this.upload = upload;
    this.sender = sender;
    this.accepted = false;
    /** @type {Speed | null} */
    this.speed = null;
    this._connection = connection;
    /** @type {Array<{seq: number, data: Uint8Array}>} */
    this._ready = [];
    this._reading = false;
    this._generation = 0; // what was read for an earlier one is not wanted any more
    this._waiting = false; // its turn came and nothing was ready
    this._closed = false;
  }

  /** The server said where to go on. */
  onAccepted() {
    const now = monotonic();
    this.accepted = true;
    this.speed = new Speed(this.sender.receivedBytes, now);
    this._void();
    this.upload.source.forget(this.sender.ackedBytes);
    this.upload.report();
  }

  /** @param {boolean} progressed */
  onAcked(progressed) {
    this.speed?.note(this.sender.receivedBytes, monotonic());
    this.upload.source.forget(this.sender.ackedBytes);
    this.upload.report({ progressed });
  }

  /**
   * Return the message of the chunk that is to be sent now, null while it is not read yet or the payload has ended.
   *
   * @returns {{seq: number, message: Uint8Array<ArrayBuffer>} | null}
   */
  nextChunk() {
    this._noteEnd();
    const span = this.sender.nextSpan();
    if (span === null) {
      return null;
    }
    if (this._ready.length > 0 && this._ready[0].seq !== span.seq) {
      this._void();
    }
    const first = this._ready.shift();
    if (first === undefined) {
      this._waiting = true;
      this.adjust();
    }
    this._readAhead(span.seq + (first ? 1 : 0));
    return first ? { seq: first.seq, message: encode(this.sender.handle, first.seq, first.data) } : null;
  }

  /** Whether nothing may be sent: the program paused it, or nothing is read yet. */
  get standsStill() {
    return this._waiting || this.upload.paused;
  }

  /** Make the sender stand still or go on, after a pause or when something is ready. */
  adjust() {
    this.sender.paused = this.standsStill;
    if (!this.sender.paused) {
      this._connection.wake();
    }
  }

  /** @param {string} code @param {{final: boolean}} options */
  abort(code, options) {
    this._connection.abort(this, code, options);
  }

  /** Let go; a read that is under way stays the source's. */
  close() {
    this._closed = true;
    this._ready = [];
  }

  _void() {
    this._ready = [];
    this._generation += 1;
    this._reading = false; // a stream may take hours for what is read now; what it gave before can be read meanwhile
    this._waiting = false;
    this.adjust();
  }

  /** Tell the sender where a payload of unknown size ends, before its last chunk or `finish` goes. */
  _noteEnd() {
    const { size } = this.upload.source;
    if (this.sender.size === null && size !== null) {
      this.sender.end(size);
    }
  }

  /**
   * Start reading the next batch, where less than half a batch is ready and there is credit for more.
   *
   * @param {number} first the chunk to begin with where nothing is ready
   */
  _readAhead(first) {
    const batch = Math.max(1, Math.floor(READ_BYTES / this.sender.chunkSize));
    if (this._reading || this._closed || this._ready.length > batch / 2) {
      return;
    }
    const start = this._ready.length > 0 ? this._ready[this._ready.length - 1].seq + 1 : first;
    const end = Math.min(start + batch, this.sender.limit);
    const { size } = this.upload.source;
    if (end > start && (size === null || start * this.sender.chunkSize < size)) {
      this._reading = true;
      void this._read(start, end);
    }
  }

  /** @param {number} start @param {number} end exclusive */
  async _read(start, end) {
    const generation = this._generation;
    try {
      const unknown = this.upload.source.size === null;
      for (let seq = start; seq < end; seq += unknown ? 1 : end - start) {
        await this._readSome(seq, unknown ? seq + 1 : end, generation);
      }
    } catch (error) {
      this._failed(error);
      return;
    }
    if (!this._closed && generation === this._generation) {
      this._reading = false;
      this._waiting = false;
      this.adjust();
    }
  }

  /** @param {number} start @param {number} end exclusive @param {number} generation */
  async _readSome(start, end, generation) {
    const { chunkSize } = this.sender;
    const data = await this.upload.source.read(start * chunkSize, (end - start) * chunkSize);
    if (this._closed || generation !== this._generation) {
      return;
    }
    for (let at = 0; at < data.length; at += chunkSize) {
      this._ready.push({ seq: start + at / chunkSize, data: data.subarray(at, at + chunkSize) });
    }
    this._waiting = false;
    this.adjust();
  }

  /** @param {unknown} error */
  _failed(error) {
    if (!this._closed) {
      this.abort("cancelled", { final: true });
      this.upload.fail(error);
    }
  }
}
