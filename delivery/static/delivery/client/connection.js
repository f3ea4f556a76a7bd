/**
 * One connection: a WebSocket and the protocol core, and what they mean for uploads and deliveries.
 *
 * It feeds the core what comes, acts on its events, and sends what the core wants sent. What outlives the connection is
 * its client's.
 */

import { MessagesLost, ProtocolViolation, Refused, TransferAborted } from "../errors.js";
import { ABORT_CODES, REJECT_CODES } from "../protocol/codes.js";
import { Connection } from "../protocol/connection.js";
import { Limits, Side } from "../protocol/limits.js";
import { hello } from "../protocol/messages.js";
import { DownloadReceiver } from "./download.js";
import { UploadFeed, monotonic } from "./upload.js";

/** @import { Closed } from "../protocol/backoff.js" */
/** @import { Event } from "../protocol/exchange.js" */
/** @import { Abort, DeliveryOffer, Reject, Welcome } from "../protocol/messages.js" */
/** @import { Receiver } from "../protocol/receiver.js" */
/** @import { Sender } from "../protocol/sender.js" */
/** @import { Incoming } from "./download.js" */
/** @import { Received } from "./sinks.js" */
/** @import { Upload } from "./upload.js" */

export const SUBPROTOCOL = "delivery.v1";
const MAX_MESSAGE_BYTES = 16 * 1024 * 1024;
const EARLY_DATA_BYTES = 64 * 1024;
const OPEN_SECONDS = 15;
const GOING_AWAY_SECONDS = 5; // longer than the server takes to close, at most 2 s
const PROBE_SECONDS = 5; // that a connection which may be dead has for an answer
const FROZEN_SECONDS = 5; // a timer that comes so much too late says that this page stood still
const BUSY_SECONDS = 1; // between looks while transfers live
const POLL_SECONDS = 0.01; // the WebSocket does not say when it has sent something
const BUFFERED_MIN_BYTES = 64 * 1024;
const BUFFERED_MAX_BYTES = 4 * 1024 * 1024;
const DRAINED_SLOWLY_SECONDS = 1;

/**
 * What a connection needs of its client.
 *
 * @typedef {object} ConnectionHost
 * @property {string} clientId
 * @property {string | null} token
 * @property {boolean} receive
 * @property {string[]} groups
 * @property {(welcome: Welcome) => boolean} welcomed false where somebody else is logged in: nothing may be offered
 * @property {(now: number) => Upload[]} uploadsDue
 * @property {(offer: DeliveryOffer) => Incoming} incomingFor
 * @property {(transfer: string) => Received | "refused" | undefined} settled how a delivery ended earlier
 * @property {(chunkBytes: number) => void} progressed
 * @property {(upload: Upload, code: string, wait: number) => void} postponed
 * @property {(incoming: Incoming, error: TransferAborted) => void} lost
 */

/** How much may lie in the browser's buffer: more where it drains fast, little where a ping would wait behind it. */
class SendBuffer {
  constructor() {
    this.allowed = 8 * BUFFERED_MIN_BYTES;
    this._filledAt = 0;
  }

  /**
   * Return whether `bytes` more may be given to the socket.
   *
   * @param {number} buffered
   * @param {number} bytes
   * @param {number} now
   */
  hasRoom(buffered, bytes, now) {
    if (buffered === 0) {
      if (this._filledAt > 0 && now - this._filledAt < DRAINED_SLOWLY_SECONDS / 2) {
        this.allowed = Math.min(BUFFERED_MAX_BYTES, this.allowed * 2);
      }
      this._filledAt = now;
      return true;
    }
    if (now - this._filledAt > DRAINED_SLOWLY_SECONDS) {
      this.allowed = Math.max(BUFFERED_MIN_BYTES, this.allowed / 2);
      this._filledAt = now;
    }
    return buffered + bytes <= this.allowed;
  }
}

/** A connection from its opening to its end. `run` resolves with how it ended. */
export class ClientConnection {
  /** @param {ConnectionHost} host @param {WebSocket} socket @param {{chunkSize: number, window: number}} sizes bytes */
  constructor(host, socket, { chunkSize, window }) {
    this.reason = "";
    this._host = host;
    this._socket = socket;
    this._chunkSize = chunkSize;
    this._window = window;
    const limits = new Limits({ maxMessage: MAX_MESSAGE_BYTES, chunkSize, earlyData: EARLY_DATA_BYTES });
    this.core = new Connection(Side.CLIENT, limits, { now: monotonic() });
    /** @type {Map<number, UploadFeed>} */
    this._feeds = new Map();
    /** @type {Map<number, DownloadReceiver>} */
    this._downloads = new Map();
    this._buffer = new SendBuffer();
    this._opened = false;
    this._welcomedAt = 0;
    this._moved = false; // whether any position moved on this connection
    this._tried = false; // whether chunks were sent, or a delivery was accepted
    /** @type {number | null} */
    this._retryAfter = null;
    this._dropAt = Infinity; // when to give the connection up, whatever it does
    this._tickAt = 0; // when the timer is due
    this._probedAt = 0;
    this._woken = false;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._timer = undefined;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._poll = undefined;
    this._ended = false;
    /** @type {(how: Closed & {opened: boolean}) => void} */
    this._resolve = () => {};
  }

  /** Serve the connection until it ends. @returns {Promise<Closed & {opened: boolean}>} */
  run() {
    const socket = this._socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this._onOpen();
    socket.onmessage = (event) => this._onMessage(event.data);
    socket.onclose = (event) => this._end(event.code, event.reason);
    socket.onerror = () => {}; // `close` follows and says more
    this._dropAt = monotonic() + OPEN_SECONDS;
    this._schedule();
    return new Promise((resolve) => {
      this._resolve = resolve;
    });
  }

  /** There may be something to send. */
  wake() {
    if (!this._ended && !this._woken) {
      this._woken = true;
      queueMicrotask(() => {
        this._woken = false;
        this._pump();
      });
    }
  }

  /** Close: the client wants it. What is unfinished stays with the server. */
  close() {
    this._end(1000, "");
  }

  /** Something hints that this connection may be dead, or that time stood still: ask the server at once. */
  probe() {
    if (this._opened && this.core.welcomed && this._probedAt === 0) {
      this._probedAt = monotonic();
      this.core.ping();
      this._flush();
      this._schedule();
    }
  }

  // -- what comes -----------------------------------------------------------------------------------------------------

  _onOpen() {
    if (this._socket.protocol !== SUBPROTOCOL) {
      this._end(1002, `the server does not speak ${SUBPROTOCOL}: is it the URL of another socket?`);
      return;
    }
    this._opened = true;
    const { clientId, receive, token, groups } = this._host;
    const limits = this.core.limits;
    this.core.hello(
      hello({
        client: clientId,
        maxMessage: limits.maxMessage,
        receive,
        chunkSize: limits.chunkSize,
        earlyData: limits.earlyData,
        token,
        groups: receive ? groups : [],
      }),
    );
    this._flush();
  }

  /** @param {string | ArrayBuffer} data */
  _onMessage(data) {
    if (this._ended) {
      return;
    }
    const now = monotonic();
    try {
      const events =
        typeof data === "string" ? this.core.receiveText(data, now) : this.core.receiveBytes(data, now);
      this._act(events);
    } catch (error) {
      this._onViolation(error);
      return;
    }
    this._pump();
  }

  /** @param {unknown} error */
  _onViolation(error) {
    if (!(error instanceof ProtocolViolation)) {
      this._end(1011, "");
      throw error; // a fault of ours: it is to be seen
    }
    const lost = error instanceof MessagesLost;
    this._end(lost ? 1009 : 4400, error.reason);
  }

  /** @param {Event[]} events */
  _act(events) {
    for (const event of events) {
      this._actOn(event);
    }
  }

  /** @param {Event} event */
  _actOn(event) {
    switch (event.kind) {
      case "welcomed":
        return this._onWelcome(event.welcome);
      case "goingAway":
        this._retryAfter = event.message.retryAfter;
        this.reason = event.message.reason;
        this._dropAt = monotonic() + GOING_AWAY_SECONDS;
        return undefined;
      case "silent":
        return this._end(1006, "the server is silent");
      case "offered":
        return this._onOffer(event.receiver);
      case "chunkKept":
        this._noteMoved(event.chunk.data.length);
        return this._downloads.get(event.receiver.handle)?.keep(event.chunk);
      case "finished":
        return this._downloads.get(event.receiver.handle)?.poke();
      case "rewound":
        return this._downloads.get(event.receiver.handle)?.rewound();
      case "receiverAborted":
        return this._onReceiverAborted(event.receiver, event.message);
      default:
        return this._onAnswer(event);
    }
  }

  /** @param {Event} event */
  _onAnswer(event) {
    switch (event.kind) {
      case "accepted":
        return this._feeds.get(event.sender.handle)?.onAccepted();
      case "acked":
        return this._onAcked(event.sender, event.progressed);
      case "rejected":
        return this._onRejected(event.sender, event.message);
      case "completed":
        this._noteMoved(event.sender.longestAcked);
        return this._release(event.sender)?.complete(event.sender.size ?? 0, event.sha256, event.payload);
      case "senderAborted":
        return this._onSenderAborted(event.sender, event.message);
      default:
        return undefined;
    }
  }

  /** @param {Welcome} welcome */
  _onWelcome(welcome) {
    this._welcomedAt = monotonic();
    this._dropAt = Infinity;
    if (!this._host.welcomed(welcome)) {
      this._end(4401, "another user is logged in");
    }
  }

  /** @param {number} chunkBytes */
  _noteMoved(chunkBytes) {
    this._moved = true;
    this._host.progressed(chunkBytes);
  }

  // -- deliveries -----------------------------------------------------------------------------------------------------

  /** @param {Receiver} receiver */
  _onOffer(receiver) {
    const offer = /** @type {DeliveryOffer} */ (receiver.offer);
    const settled = this._host.settled(offer.transfer);
    if (settled === "refused") {
      this.core.reject(receiver, "declined");
    } else if (settled !== undefined) {
      this.core.done(receiver, settled);
    } else {
      const incoming = this._host.incomingFor(offer);
      const download = new DownloadReceiver(incoming, receiver, this.core, {
        window: this._window,
        wake: () => this.wake(),
      });
      this._downloads.set(receiver.handle, download);
      void incoming.attach(download);
    }
  }

  /** @param {Receiver} receiver @param {Abort} message */
  _onReceiverAborted(receiver, message) {
    const download = this._downloads.get(receiver.handle);
    this._downloads.delete(receiver.handle);
    download?.close();
    if (download && (message.final || message.code === "taken_over")) {
      const { code, final } = message;
      const text = message.message || (ABORT_CODES.get(code)?.text ?? "");
      this._host.lost(download.incoming, new TransferAborted(code, text, { final }));
    }
  }

  /**
   * Stop receiving: `declined` where the offer is unanswered still, else an abort.
   *
   * @param {DownloadReceiver} download
   * @param {"declined" | "cancelled" | "paused"} code
   */
  drop(download, code) {
    const { receiver } = download;
    download.close();
    if (!this._downloads.delete(receiver.handle) || !receiver.live) {
      return;
    }
    if (!download.accepted && code !== "paused") {
      this.core.reject(receiver, "declined");
    } else {
      this.core.abort(receiver, code === "paused" ? "paused" : "cancelled", "", { final: code !== "paused" });
    }
    this.wake();
  }

  // -- uploads --------------------------------------------------------------------------------------------------------

  _offerDue() {
    const now = monotonic();
    for (const upload of this.core.canOffer() ? this._host.uploadsDue(now) : []) {
      if (!this.core.canOffer()) {
        return;
      }
      this._offer(upload, now);
    }
  }

  /** @param {Upload} upload @param {number} now */
  _offer(upload, now) {
    const sender = this.core.offer(upload.offer(this._chunkSize), { first: !upload.offeredBefore, now });
    upload.offeredBefore = true;
    if (upload.mustTell) {
      upload.mustTell = false;
      this.core.abort(sender, "cancelled", "", { final: true });
      return;
    }
    const feed = new UploadFeed(upload, sender, {
      wake: () => this.wake(),
      abort: (which, code, options) => this._abortFeed(which, code, options),
    });
    upload.feed = feed;
    this._feeds.set(sender.handle, feed);
    feed.adjust();
  }

  /** @param {UploadFeed} feed @param {string} code @param {{final: boolean}} options */
  _abortFeed(feed, code, options) {
    if (this._feeds.delete(feed.sender.handle) && feed.sender.live) {
      this.core.abort(feed.sender, code, "", options);
      this.wake();
    }
  }

  /** @param {Sender} sender @param {boolean} progressed */
  _onAcked(sender, progressed) {
    this._moved ||= sender.moved;
    if (progressed) {
      this._noteMoved(sender.longestAcked);
    }
    this._feeds.get(sender.handle)?.onAcked(progressed);
  }

  /** @param {Sender} sender @param {Reject} message */
  _onRejected(sender, message) {
    const upload = this._release(sender);
    const { code, maxSize, retryAfter } = message;
    const verdict = REJECT_CODES.get(code);
    if (upload && verdict?.retryable) {
      this._postpone(upload, code, retryAfter);
    } else {
      const text = message.message || (verdict?.text ?? code);
      upload?.fail(new Refused(code, text, { maxSize, retryAfter }));
    }
  }

  /** @param {Sender} sender @param {Abort} message */
  _onSenderAborted(sender, message) {
    const upload = this._release(sender);
    const { code, final, retryAfter } = message;
    if (upload && (final || code === "taken_over")) {
      const text = message.message || (ABORT_CODES.get(code)?.text ?? "");
      upload.fail(new TransferAborted(code, text, { final }));
    } else if (upload) {
      this._postpone(upload, code, retryAfter);
    }
  }

  /** @param {Upload} upload @param {string} code @param {number | null} retryAfter */
  _postpone(upload, code, retryAfter) {
    const wait = upload.postpone(retryAfter);
    this._host.postponed(upload, code, wait);
    setTimeout(() => this.wake(), wait * 1000 + 1);
  }

  /** Take an upload off this connection; null where it was already. @param {Sender} sender */
  _release(sender) {
    const feed = this._feeds.get(sender.handle);
    if (feed === undefined) {
      return null;
    }
    this._feeds.delete(sender.handle);
    void feed.upload.progress; // notes how far it is
    feed.close();
    feed.upload.feed = null;
    return feed.upload;
  }

  /** @param {number} now */
  _letGoOfStalled(now) {
    for (const sender of [...this.core.senders.values()]) {
      if (sender.stalled(now)) {
        const upload = this._release(sender);
        if (upload) {
          this.core.abort(sender, "stalled", "", { final: false });
          this._postpone(upload, "stalled", null);
        }
      }
    }
  }

  // -- what goes out --------------------------------------------------------------------------------------------------

  _look() {
    this._poll = undefined;
    this._pump();
  }

  /** Send what is due, as far as the socket takes it. */
  _pump() {
    if (this._ended || !this._opened) {
      return;
    }
    try {
      this._offerDue();
      this.core.queueAcks(monotonic());
      this._flush();
      this._sendChunks();
      this._flush();
    } catch (error) {
      this._end(1011, "");
      throw error; // a fault of ours: it is to be seen
    }
    this._schedule();
  }

  _flush() {
    const { outbox } = this.core;
    while (outbox.length > 0 && this._socket.readyState === 1) {
      const message = outbox[0];
      this._socket.send(this.core.encode(message));
      outbox.shift();
      this.core.sent(monotonic());
      this._tried ||= message.type === "accept";
    }
  }

  _sendChunks() {
    for (;;) {
      const room = this._buffer.hasRoom(this._socket.bufferedAmount, this._chunkSize, monotonic());
      if (!room || this._socket.readyState !== 1) {
        this._pollSoon(POLL_SECONDS);
        return;
      }
      const sender = this._nextSender();
      if (sender === null) {
        return;
      }
      if (sender.finishDue()) {
        this.core.finish(sender, null);
        this._flush();
        this._feeds.get(sender.handle)?.upload.report();
      } else {
        this._sendChunk(sender);
      }
    }
  }

  /** Return whose turn it is; those that their rate holds up stand aside until the next look. */
  _nextSender() {
    const now = monotonic();
    let soonest = Infinity;
    for (const feed of this._feeds.values()) {
      const wait = feed.upload.limit.wait(now);
      feed.sender.paused = feed.standsStill || wait > 0;
      soonest = wait > 0 && !feed.standsStill ? Math.min(soonest, wait) : soonest;
    }
    if (soonest < Infinity) {
      this._pollSoon(Math.max(POLL_SECONDS, soonest));
    }
    return this.core.nextTurn();
  }

  /** @param {Sender} sender */
  _sendChunk(sender) {
    const feed = this._feeds.get(sender.handle);
    const chunk = feed?.nextChunk();
    if (feed && chunk) {
      const now = monotonic();
      this._socket.send(chunk.message);
      sender.chunkSent(chunk.seq, now);
      this.core.sent(now);
      feed.upload.limit.take(chunk.message.length, now);
      this._tried = true;
    }
  }

  // -- time -----------------------------------------------------------------------------------------------------------

  /** @param {number} seconds */
  _pollSoon(seconds) {
    this._poll ??= setTimeout(() => this._look(), seconds * 1000);
  }

  /** Have time looked at when it is due next; a look that is due sooner stays. */
  _schedule() {
    if (this._ended) {
      return;
    }
    const now = monotonic();
    const busy = this._feeds.size > 0 || this._downloads.size > 0;
    const longest = busy || this._probedAt > 0 ? BUSY_SECONDS : this.core.heartbeat / 2;
    const due = Math.min(this.core.wakeAt(), this._dropAt) - now;
    const at = now + Math.max(0.02, Math.min(longest, due));
    if (this._timer !== undefined && this._tickAt <= at) {
      return; // sending must not put it off for ever
    }
    clearTimeout(this._timer);
    this._tickAt = at;
    this._timer = setTimeout(() => this._onTimer(), (at - now) * 1000);
  }

  _onTimer() {
    const now = monotonic();
    this._timer = undefined;
    if (now >= this._dropAt) {
      this._end(1006, this._opened ? this.reason : "the server did not answer");
      return;
    }
    const frozen = now - this._tickAt > FROZEN_SECONDS;
    if (frozen && this._probedAt === 0) {
      this.probe(); // what came meanwhile may not have been handed to us yet
    } else if (!this._probing(now) && !this._ended) {
      this._act(this.core.tick(now));
      this._letGoOfStalled(now);
      for (const download of this._downloads.values()) {
        download.poke();
      }
    }
    this._pump();
    this._schedule();
  }

  /**
   * Return whether an answer to `probe` is awaited; gives the connection up where it does not come.
   *
   * @param {number} now
   */
  _probing(now) {
    if (this._probedAt === 0) {
      return false;
    }
    if (this.core.heardAt > this._probedAt) {
      this._probedAt = 0;
      return false;
    }
    if (now - this._probedAt >= PROBE_SECONDS) {
      this._end(1006, "the server is silent");
    }
    return true;
  }

  // -- the end --------------------------------------------------------------------------------------------------------

  /** @param {number} code @param {string} reason */
  _end(code, reason) {
    if (this._ended) {
      return;
    }
    this._ended = true;
    this.reason ||= reason; // `going_away` said more than the close does
    clearTimeout(this._timer);
    clearTimeout(this._poll);
    this._detachAll();
    this._closeSocket(code);
    this._resolve({
      code,
      opened: this._opened,
      retryAfter: this._retryAfter,
      stuck: this._tried && !this._moved,
      welcomedSeconds: this._welcomedAt > 0 ? monotonic() - this._welcomedAt : 0,
      chunkSize: this.core.peer ? Math.min(this._chunkSize, this.core.peer.fitting()) : null,
    });
  }

  _detachAll() {
    for (const feed of [...this._feeds.values()]) {
      const upload = this._release(feed.sender);
      upload?.report();
    }
    for (const download of this._downloads.values()) {
      download.close();
    }
    this._downloads.clear();
  }

  /** @param {number} code */
  _closeSocket(code) {
    const socket = this._socket;
    socket.onopen = socket.onmessage = socket.onclose = null;
    if (socket.readyState < 2) {
      // Browsers take 1000 and 3000 to 4999; what else this end means is no business of the server's.
      socket.close(code === 4400 ? code : 1000, code === 4400 ? this.reason.slice(0, 123) : "");
    }
  }
}
