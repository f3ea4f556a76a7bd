/**
 * One incoming payload across connections, and the receiving of it on one of them.
 *
 * `Incoming` is what a program holds: what was offered, where its bytes go, how it ended. `DownloadReceiver` hands what
 * comes on one connection to the sink, run by run; only then does an ack say so.
 */

import { DeliveryError, TransferAborted, UsageError } from "../errors.js";
import { Speed } from "./progress.js";
import { RateLimit } from "./rate.js";
import { MemorySink, StreamSink } from "./sinks.js";
import { checkedRate, monotonic } from "./upload.js";

/** @import { Chunk } from "../protocol/frames.js" */
/** @import { Connection } from "../protocol/connection.js" */
/** @import { DeliveryOffer } from "../protocol/messages.js" */
/** @import { Receiver } from "../protocol/receiver.js" */
/** @import { Progress } from "./progress.js" */
/** @import { Received, Sink } from "./sinks.js" */

export const MEMORY_BYTES = 64 * 1024 * 1024;
const SEGMENT_BYTES = 1024 * 1024; // handed to the sink, and acked, at a time

/**
 * What an `Incoming` asks of its client.
 *
 * @typedef {object} Receiving
 * @property {(incoming: Incoming, verdict: "declined" | "cancelled") => void} refuse
 * @property {(incoming: Incoming) => void} detach
 * @property {(incoming: Incoming, received: Received) => void} settle
 * @property {() => void} wake
 */

/**
 * A payload that is offered to us: read it with `blob`, `bytes`, `text`, `json` or `stream`, or decline it. Nothing is
 * received before one of these is called. `name`, `contentType` and `meta` are the sender's words; `from` is the address
 * that the server vouches for, null for the site itself.
 */
export class Incoming {
  /** @param {DeliveryOffer} offer @param {Receiving} client */
  constructor(offer, client) {
    this.transfer = offer.transfer;
    this.payload = offer.payload;
    this.name = offer.name;
    this.size = offer.size;
    this.contentType = offer.contentType;
    this.from = offer.from;
    this.meta = offer.meta;
    this.expires = offer.expires;
    this.held = false;
    this.done = false;
    this.claimed = false; // somebody asked for this very payload
    this.abandoned = false; // was being received, but whoever did has gone
    this.limit = new RateLimit(null, monotonic());
    /** @type {DownloadReceiver | null} */
    this.download = null;
    this._client = client;
    /** @type {Sink | null} */
    this._sink = null;
    /** @type {((progress: Progress) => void) | null} */
    this._onProgress = null;
    /** @type {"done" | "failed" | null} */
    this._ended = null;
    /** @type {Promise<MemorySink> | null} */
    this._inMemory = null;
    /** @type {(received: Received) => void} */
    this._resolve = () => {};
    /** @type {(error: unknown) => void} */
    this._reject = () => {};
    /** @type {Promise<Received>} */
    this.received = new Promise((resolve, reject) => {
      this._resolve = resolve;
      this._reject = reject;
    });
    this.received.catch(() => {}); // nobody has to await it
  }

  // -- receiving ------------------------------------------------------------------------------------------------------

  /**
   * Receive it into memory; resolves when all of it is there and its digest agrees.
   *
   * @param {{rate?: number | null, onProgress?: (progress: Progress) => void, signal?: AbortSignal, limit?: number}}
   *   [options] `rate` in bytes a second, `limit` in bytes
   * @returns {Promise<Uint8Array<ArrayBuffer>>}
   * @throws {UsageError} where it is larger than `limit`
   */
  async bytes({ rate, onProgress, signal, limit = MEMORY_BYTES } = {}) {
    if (this.size !== null && this.size > limit) {
      throw new UsageError(`${this.size} bytes are more than the ${limit} that fit into memory`, { code: "too_large" });
    }
    this._inMemory ??= this._receiveIntoMemory(limit);
    this._observe({ rate, onProgress, signal });
    return (await this._inMemory).bytes;
  }

  /** @param {number} limit */
  async _receiveIntoMemory(limit) {
    const sink = new MemorySink(this.size, limit);
    this._into(sink);
    await this.received;
    return sink;
  }

  /**
   * Begin to receive it into memory; `blob`, `text`, `json` and `bytes` give it later.
   *
   * @param {Parameters<Incoming["bytes"]>[0]} [options]
   */
  accept(options) {
    this.bytes(options).catch(() => {}); // whoever reads it later is told
  }

  /** @param {Parameters<Incoming["bytes"]>[0]} [options] */
  async blob(options) {
    return new Blob([await this.bytes(options)], { type: this.contentType });
  }

  /** @param {Parameters<Incoming["bytes"]>[0]} [options] */
  async text(options) {
    return new TextDecoder("utf-8", { fatal: true }).decode(await this.bytes(options));
  }

  /** @param {Parameters<Incoming["bytes"]>[0]} [options] @returns {Promise<any>} */
  async json(options) {
    return JSON.parse(await this.text(options));
  }

  /**
   * Return a stream of its bytes. The digest is checked after the last: what came before may be wrong, and then the stream
   * ends with an error. A reader that cancels leaves it with the server.
   *
   * @param {{rate?: number | null, onProgress?: (progress: Progress) => void, signal?: AbortSignal}} [options]
   * @returns {ReadableStream<Uint8Array>}
   */
  stream(options = {}) {
    const sink = new StreamSink(() => this._leave());
    this._into(sink);
    this._observe(options);
    return sink.stream;
  }

  /** @param {Sink} sink */
  _into(sink) {
    if (this._sink !== null) {
      throw new UsageError("it is being received already");
    }
    if (this.done) {
      throw new UsageError("it has ended");
    }
    this._sink = sink;
    this.download?.start(sink);
  }

  /** @param {{rate?: number | null, onProgress?: (progress: Progress) => void, signal?: AbortSignal}} options */
  _observe({ rate, onProgress, signal }) {
    if (rate !== undefined) {
      this.setRate(rate);
    }
    this._onProgress = onProgress ?? this._onProgress;
    if (signal?.aborted) {
      this.cancel();
    }
    signal?.addEventListener("abort", () => this.cancel(), { once: true });
  }

  /** Whoever received it has gone; the server keeps it. */
  _leave() {
    if (!this.done) {
      this.abandoned = true;
      this._sink = null;
      this._client.detach(this);
    }
  }

  /** Give the sender no more credit until `release`; what it has it may use. */
  hold() {
    this.held = true;
    this.download?.hold();
  }

  /** Give credit again. */
  release() {
    this.held = false;
    this.download?.release();
  }

  /** Receive at most `rate` bytes a second from now on, null for as fast as it comes. @param {number | null} rate */
  setRate(rate) {
    this.limit.change(checkedRate(rate), monotonic());
    this.download?.pace();
  }

  /** Say that this client does not want it; it is not offered to it again. */
  decline() {
    this._end("declined");
  }

  /** Stop receiving for good and drop what came; this client is not offered it again. */
  cancel() {
    this._end("cancelled");
  }

  /** @param {"declined" | "cancelled"} verdict */
  _end(verdict) {
    if (!this.done) {
      this._client.refuse(this, verdict);
      this.fail(new TransferAborted(verdict, `${verdict} here`));
    }
  }

  /** How far it is. @returns {Progress} */
  get progress() {
    const now = monotonic();
    const stored = this._sink?.position ?? 0;
    const received = Math.max(stored, this.download?.receivedBytes ?? 0);
    const speed = this.download?.speed ?? null;
    const left = this.size === null ? null : this.size - received;
    return {
      transfer: this.transfer,
      size: this.size,
      sent: received,
      received,
      stored,
      phase: this._phase(),
      speed: speed?.speed(now) ?? 0,
      secondsLeft: speed?.secondsLeft(left, now) ?? null,
    };
  }

  /** @returns {Progress["phase"]} */
  _phase() {
    if (this._ended !== null) {
      return this._ended;
    }
    if (this.held) {
      return "paused";
    }
    if (!this.download?.accepted) {
      return "waiting";
    }
    return this.download.receiver.complete ? "checking" : "moving";
  }

  // -- for the connection ---------------------------------------------------------------------------------------------

  /** Whether somebody receives it at the moment. */
  get wanted() {
    return this._sink !== null && !this.done;
  }

  /** Belong to this connection from now on. @param {DownloadReceiver} download */
  async attach(download) {
    const before = this.download;
    this.download = download;
    await before?.closedDown(); // nothing of the last connection touches the sink any more
    if (this._sink !== null && this.download === download && !this.done) {
      download.start(this._sink);
    }
  }

  /** Tell the program how far it is. A callback that throws ends this delivery, and no other. */
  report() {
    if (this.done || this._onProgress === null) {
      return;
    }
    try {
      this._onProgress(this.progress);
    } catch (error) {
      this._onProgress = null;
      this._client.detach(this);
      this.fail(error);
    }
  }

  /** @param {Received} received */
  complete(received) {
    if (!this.done) {
      this._ended = "done";
      this._client.settle(this, received);
      this.report();
      this.done = true;
      this._resolve(received);
    }
  }

  /** @param {unknown} error */
  fail(error) {
    if (!this.done) {
      this.done = true;
      this._ended = "failed";
      this._sink?.fail(error);
      this._reject(error);
    }
  }
}

/** The receiving of one delivery on one connection. */
export class DownloadReceiver {
  /**
   * @param {Incoming} incoming
   * @param {Receiver} receiver
   * @param {Connection} core
   * @param {{window: number, wake: () => void}} connection `window` in bytes
   */
  constructor(incoming, receiver, core, { window, wake }) {
    this.incoming = incoming;
    this.receiver = receiver;
    this.accepted = false;
    /** @type {Speed | null} */
    this.speed = null;
    this._core = core;
    this._window = window;
    this._wakeConnection = wake;
    /** @type {Array<{seq: number, data: Uint8Array}>} */
    this._kept = [];
    this._closed = false;
    this._woken = false;
    /** @type {() => void} */
    this._wake = () => {};
    /** @type {() => void} */
    this._endPause = () => {};
    /** @type {Promise<void> | null} */
    this._running = null;
  }

  get receivedBytes() {
    return this.accepted ? this.receiver.offset(this.receiver.received) : 0;
  }

  // -- for the connection ---------------------------------------------------------------------------------------------

  /** @param {Chunk} chunk */
  keep(chunk) {
    this._kept.push({ seq: chunk.seq, data: chunk.data });
    this.speed?.note(this.receivedBytes, monotonic());
    this.poke();
  }

  /** We sent a nack: what was kept from there on comes again. */
  rewound() {
    this._kept = this._kept.filter(({ seq }) => seq < this.receiver.received);
  }

  /** Have another look: something came, or time went by. */
  poke() {
    this._woken = true;
    this._wake();
  }

  /** @param {Sink} sink */
  start(sink) {
    if (this._running === null && !this._closed) {
      this._running = this._run(sink);
    }
  }

  hold() {
    if (this.accepted) {
      this.receiver.hold();
    }
  }

  release() {
    if (this.accepted && this.receiver.live) {
      this.receiver.release();
      this._wakeConnection();
    }
  }

  /** The rate has changed: with less credit out, less comes at a time. */
  pace() {
    if (this.accepted) {
      this.receiver.resize(this._windowNow());
    }
    this._endPause();
    this.poke();
  }

  _windowNow() {
    const { rate } = this.incoming.limit;
    return rate === null ? this._window : Math.min(this._window, Math.max(1, rate / 2));
  }

  /** The connection or the transfer is gone: what was not handed on yet comes again. */
  close() {
    this._closed = true;
    this._endPause();
    this.poke();
  }

  /** Wait until nothing of this touches the sink any more. */
  async closedDown() {
    this.close();
    await this._running;
  }

  // -- handing on -----------------------------------------------------------------------------------------------------

  /** @param {Sink} sink */
  async _run(sink) {
    try {
      const received = await this._receive(sink);
      if (received !== null) {
        this._core.done(this.receiver, received);
        this.incoming.complete(received);
      }
    } catch (error) {
      this._failed(error);
    }
    this._wakeConnection();
  }

  /** @param {Sink} sink @returns {Promise<Received | null>} null where the connection or the transfer ended before */
  async _receive(sink) {
    this._accept(sink);
    while (!this._closed) {
      this._woken = false;
      await this._writeDue(sink);
      if (this._closed) {
        return null;
      }
      if (this.receiver.complete) {
        this.incoming.report();
        const received = await sink.finish(this.receiver.expectedDigests());
        return this._closed || !this.receiver.live ? null : received;
      }
      await this._untilWoken();
    }
    return null;
  }

  async _untilWoken() {
    if (!this._woken) {
      await new Promise((resolve) => {
        this._wake = () => resolve(undefined);
      });
    }
  }

  /** @param {Sink} sink */
  _accept(sink) {
    const now = monotonic();
    const terms = { window: this._windowNow(), segmentSize: SEGMENT_BYTES, maxSize: Number.MAX_SAFE_INTEGER };
    this._core.accept(this.receiver, { stored: sink.position, terms, now, hold: this.incoming.held });
    this.accepted = true;
    this.speed = new Speed(sink.position, now);
    this.incoming.report();
    this._wakeConnection();
  }

  /** @param {Sink} sink */
  async _writeDue(sink) {
    for (let run = this._nextRun(); run !== null && !this._closed; run = this._nextRun()) {
      const blocks = this._kept.splice(0, run.end - run.start).map(({ data }) => data);
      await sink.write(blocks);
      await this._pause(blocks.reduce((sum, block) => sum + block.length, 0));
      if (this._closed || !this.receiver.live) {
        return;
      }
      this.receiver.onStored(run.end);
      this.incoming.report();
      this._wakeConnection();
    }
  }

  _nextRun() {
    return this.receiver.nextRun(monotonic()) ?? this._restAtRate();
  }

  /** At a low rate credit is small, and runs are what came with it. */
  _restAtRate() {
    return this.incoming.limit.rate === null ? null : this.receiver.rest();
  }

  /** Wait for as long as the rate asks for, after `bytes` were taken in. @param {number} bytes */
  async _pause(bytes) {
    const { limit } = this.incoming;
    limit.take(bytes, monotonic());
    for (let wait = limit.wait(monotonic()); wait > 0 && !this._closed; wait = limit.wait(monotonic())) {
      await new Promise((resolve) => {
        const timer = setTimeout(resolve, wait * 1000);
        this._endPause = () => {
          clearTimeout(timer);
          resolve(undefined);
        };
      });
    }
  }

  /** @param {unknown} error */
  _failed(error) {
    if (!this._closed && this.receiver.live) {
      const digest = error instanceof DeliveryError && error.code === "digest";
      const code = digest ? "digest" : "storage_unavailable";
      this._core.abort(this.receiver, code, "the receiver cannot keep it", { final: digest });
    }
    this.incoming.fail(error);
  }
}
