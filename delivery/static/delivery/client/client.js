/**
 * What a program holds: a client that stays connected, with its uploads and deliveries (PROTOCOL section 6).
 *
 * One connection at a time. When it ends the client does what the close code asks: waits, reconnects and resumes, with
 * smaller chunks after a 1009, waits for a login, or stops with an error that says why.
 */

import { ConnectionStopped, DeliveryError, TransferAborted, UsageError } from "../errors.js";
import { Recovery } from "../protocol/backoff.js";
import { CLOSE_CODES, Reaction, reactionTo } from "../protocol/codes.js";
import { isChunkSize } from "../protocol/frames.js";
import * as messages from "../protocol/messages.js";
import { Ceilings } from "./ceiling.js";
import { ClientConnection, SUBPROTOCOL } from "./connection.js";
import { Incoming } from "./download.js";
import { openSource } from "./sources.js";
import { Upload, checkedRate } from "./upload.js";

/** @import { Closed, Plan } from "../protocol/backoff.js" */
/** @import { DeliveryOffer, UploadOffer, Welcome } from "../protocol/messages.js" */
/** @import { ConnectionHost } from "./connection.js" */
/** @import { Receiving } from "./download.js" */
/** @import { Progress } from "./progress.js" */
/** @import { Received } from "./sinks.js" */
/** @import { Source } from "./sources.js" */
/** @import { Receipt } from "./upload.js" */

const CHUNK_BYTES = 256 * 1024;
const WINDOW_BYTES = 16 * 1024 * 1024;
const SETTLED_MOST = 10_000;
const NAME_CHARACTERS = 255;

/**
 * How the client is. `connecting`; `connected`; `waiting` to connect again, with the code and reason of the close, `wait`
 * in seconds and `nextAttempt` as a Unix time in milliseconds; `login`: a login is needed to go on; `stopped`: the
 * connection cannot come back by itself; `closed`. `missing` names what this page lacks, such as `crypto.subtle` on plain
 * http.
 *
 * @typedef {{name: "connecting" | "connected" | "waiting" | "login" | "stopped" | "closed", code: number | null,
 *   reason: string, wait: number | null, nextAttempt: number | null, missing: string[]}} ClientState
 */

/**
 * Options of a client. `token`: a login for clients without a session cookie. `clientId`: 1 to 64 characters, the same in
 * the next page where that is to go on with deliveries of this one. `receive`: be offered what waits for this user and
 * `groups`. `chunkSize`: the largest to send and receive, a power of two from 4,096 to 4,194,304 bytes. `window`: the
 * credit of each delivery, bytes. `user`: the only user to go on as, such as "user:42"; by default the first that the
 * server names. `WebSocket`: the class to connect with. `storage`: keeps what a URL's proxies let through.
 *
 * @typedef {{token?: string | null, clientId?: string, receive?: boolean, groups?: string[], chunkSize?: number,
 *   window?: number, user?: string | null, WebSocket?: typeof WebSocket,
 *   storage?: Pick<Storage, "getItem" | "setItem"> | null}} ClientOptions
 */

/**
 * Options of an upload. `to`: addresses such as "user:42" or "group:ops"; none for the site itself. `rate` in bytes a
 * second. `transfer`: the id of an earlier attempt at the same payload, to go on with it. `signal`: aborting cancels the
 * upload for good.
 *
 * @typedef {{to?: string | string[], name?: string, contentType?: string, meta?: Record<string, string>,
 *   onProgress?: (progress: Progress) => void, rate?: number | null, signal?: AbortSignal, transfer?: string}} SendOptions
 */

/** @typedef {"state" | "delivery" | "error" | "waiting"} EventName */

/**
 * A client that reconnects by itself. It begins to connect when it is made.
 *
 * @implements {ConnectionHost}
 * @implements {Receiving}
 */
export class DeliveryClient {
  /**
   * @param {string} url ws:// or wss://, or relative to the page
   * @param {ClientOptions} [options]
   * @throws {UsageError} for options that cannot be right
   */
  constructor(url, options = {}) {
    this.url = checkedUrl(url);
    const { chunkSize = CHUNK_BYTES, clientId = uuid(), window = WINDOW_BYTES } = options;
    checkOptions(chunkSize, clientId);
    this.clientId = clientId;
    this.token = checkedToken(options.token ?? null);
    this.receive = options.receive ?? false;
    this.groups = options.groups ?? [];
    /** @type {string | null} as the server names the user */
    this.user = options.user ?? null;
    /** @type {ClientState} */
    this.state = stateOf("connecting");
    this._window = window;
    this._WebSocket = webSocketClass(options.WebSocket);
    this._ceilings = new Ceilings(options.storage === undefined ? localStorageOrNull() : options.storage);
    const known = this._ceilings.get(this.url);
    this._recovery = new Recovery({ chunkSize: Math.min(chunkSize, known ?? chunkSize) });
    /** @type {Map<string, Upload>} */
    this._uploads = new Map();
    /** @type {Map<string, Incoming>} */
    this._incoming = new Map();
    /** @type {Map<string, Received | "refused">} */
    this._settled = new Map();
    /** @type {Map<EventName, Set<(detail: any) => void>>} */
    this._listeners = new Map();
    /** @type {Incoming[]} offered, and nobody has listened yet */
    this._unheard = [];
    /** @type {Map<string, {resolve: (incoming: Incoming) => void, reject: (error: unknown) => void}>} by payload */
    this._expected = new Map();
    /** @type {ClientConnection | null} */
    this._connection = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this._retry = undefined;
    /** @type {DeliveryError | null} */
    this._error = null;
    this._stopListening = listenToPage(this);
    queueMicrotask(() => this._connect());
  }

  // -- sending --------------------------------------------------------------------------------------------------------

  /**
   * Send a payload; resolves with its receipt once the server has stored and checked all of it.
   *
   * @param {unknown} payload File, Blob, bytes, string, ReadableStream, iterable of bytes, or a value that JSON can hold
   * @param {SendOptions} [options]
   * @returns {Promise<Receipt>}
   */
  async send(payload, options) {
    return this.start(payload, options).receipt;
  }

  /**
   * Start sending; return the handle that pauses, resumes and cancels, and has the promise of the receipt.
   *
   * @param {unknown} payload as of `send`
   * @param {SendOptions} [options]
   * @returns {Upload}
   * @throws {UsageError} for what cannot be right; other uploads go on
   */
  start(payload, options = {}) {
    if (this._error !== null) {
      throw this._error;
    }
    options.signal?.throwIfAborted();
    const source = openSource(payload);
    const offer = this._offerOf(source, options);
    if (this._uploads.get(offer.transfer)?.done === false) {
      throw new UsageError(`transfer ${offer.transfer} is being sent already`);
    }
    const upload = new Upload(source, offer, {
      resumed: options.transfer !== undefined,
      rate: checkedRate(options.rate ?? null),
      onProgress: options.onProgress ?? null,
      wake: () => this.wake(),
    });
    options.signal?.addEventListener("abort", () => upload.cancel(abortedBy(options.signal)), { once: true });
    this._uploads.set(offer.transfer, upload);
    this.wake();
    return upload;
  }

  /** @param {Source} source @param {SendOptions} options @returns {UploadOffer} */
  _offerOf(source, { to = [], name, contentType, meta = {}, transfer = uuid() }) {
    /** @type {UploadOffer} */
    const offer = {
      type: "offer",
      transfer,
      handle: 1, // the connection chooses
      name: fitting(name ?? source.name),
      size: source.size,
      contentType: (contentType || source.contentType || "application/octet-stream").slice(0, NAME_CHARACTERS),
      chunkSize: this._recovery.chunkSize,
      sha256: null,
      meta: { ...meta },
      to: typeof to === "string" ? [to] : [...to],
    };
    messages.encode(offer, messages.FROM_CLIENT);
    return offer;
  }

  /** The uploads that have not ended, oldest first. */
  get uploads() {
    return [...this._uploads.values()].filter((upload) => !upload.done);
  }

  // -- listening ------------------------------------------------------------------------------------------------------

  /**
   * Call `listener` at each event; returns what ends that. `state`: a `ClientState`. `delivery`: an `Incoming`; needs
   * `receive: true`. `waiting`: `{upload, code, wait}`, where the server wants an upload to be offered later.
   *
   * @param {EventName} name
   * @param {(detail: any) => void} listener
   * @returns {() => void}
   */
  on(name, listener) {
    if (name === "delivery" && !this.receive) {
      throw new UsageError("make the client with receive: true to be offered deliveries");
    }
    const listeners = this._listeners.get(name) ?? new Set();
    this._listeners.set(name, listeners.add(listener));
    if (name === "delivery") {
      for (const incoming of this._unheard.splice(0)) {
        call(listener, incoming);
      }
    }
    return () => listeners.delete(listener);
  }

  /** @param {EventName} name @param {any} detail */
  _emit(name, detail) {
    for (const listener of [...(this._listeners.get(name) ?? [])]) {
      call(listener, detail);
    }
  }

  /**
   * Return the delivery of one payload as soon as it is offered; no `delivery` event names it then. For pointers that came
   * another way.
   *
   * @param {string} payload
   * @returns {Promise<Incoming>}
   */
  async expect(payload) {
    if (!this.receive) {
      throw new UsageError("make the client with receive: true to be offered deliveries");
    }
    if (this._error !== null) {
      throw this._error;
    }
    const offered = [...this._incoming.values()].find(
      (incoming) => incoming.payload === payload && !incoming.claimed && !incoming.wanted && !incoming.done,
    );
    if (offered) {
      offered.claimed = true;
      this._unheard = this._unheard.filter((incoming) => incoming !== offered);
      return offered;
    }
    return new Promise((resolve, reject) => this._expected.set(payload, { resolve, reject }));
  }

  // -- logging in, leaving --------------------------------------------------------------------------------------------

  /**
   * Go on with a new login: a new `token`, or the page's new session cookie. Unfinished uploads of the same user go on.
   *
   * @param {{token?: string | null}} [login]
   */
  login({ token } = {}) {
    if (token !== undefined) {
      this.token = checkedToken(token);
    }
    this._reconnect();
  }

  /** Close the connection. What is unfinished stays with the server, and can be resumed by its transfer id. */
  close() {
    this._stop(new ConnectionStopped(1000, "the client was closed"), "closed");
  }

  /** Something changed for the better: the page is visible or the network is back. Never begins a wait. */
  nudge() {
    if (this._connection !== null) {
      this._connection.probe();
    } else if (this.state.name === "waiting") {
      this._reconnect();
    }
  }

  /** Look at once whether the connection lives; for pages that come back into view. */
  probe() {
    this._connection?.probe();
  }

  wake() {
    this._connection?.wake();
  }

  // -- the life of connections ----------------------------------------------------------------------------------------

  _reconnect() {
    if (this._error === null && this._connection === null) {
      clearTimeout(this._retry);
      this._connect();
    }
  }

  _connect() {
    if (this._error !== null || this._connection !== null) {
      return;
    }
    this._setState(stateOf("connecting"));
    let socket;
    try {
      socket = new this._WebSocket(this.url, [SUBPROTOCOL]);
    } catch (cause) {
      this._stop(new UsageError(`cannot connect to ${this.url}`, { cause }), "stopped");
      return;
    }
    const connection = new ClientConnection(this, socket, {
      chunkSize: this._recovery.chunkSize,
      window: this._window,
    });
    this._connection = connection;
    void connection.run().then((how) => this._onEnd(connection, how));
  }

  /** @param {ClientConnection} connection @param {Closed & {opened: boolean}} how */
  _onEnd(connection, how) {
    this._connection = null;
    if (this._error !== null) {
      return;
    }
    if (how.code === 4401) {
      this._setState({ ...stateOf("login"), code: how.code, reason: connection.reason });
      return;
    }
    const refused = !how.opened && reactionTo(how.code) === Reaction.BACKOFF;
    const plan = refused ? this._recovery.refused(Math.random()) : this._recovery.closed(how, Math.random());
    if (plan.shrunk) {
      this._ceilings.remember(this.url, plan.chunkSize);
    }
    if (plan.stop || how.code === 1002) {
      this._stop(new ConnectionStopped(how.code, connection.reason || CLOSE_CODES.get(how.code)?.reason || ""), "stopped");
      return;
    }
    this._waitFor(plan, how.code, connection.reason);
  }

  /** @param {Plan} plan @param {number} code @param {string} reason */
  _waitFor(plan, code, reason) {
    const nextAttempt = Date.now() + plan.wait * 1000;
    this._setState({ ...stateOf("waiting"), code, reason, wait: plan.wait, nextAttempt });
    this._retry = setTimeout(() => this._connect(), plan.wait * 1000);
  }

  /** @param {ClientState} state */
  _setState(state) {
    this.state = state;
    this._emit("state", state);
  }

  /** @param {DeliveryError} error @param {"stopped" | "closed"} name */
  _stop(error, name) {
    if (this._error !== null) {
      return;
    }
    this._error = error;
    clearTimeout(this._retry);
    this._stopListening();
    this._connection?.close();
    for (const ended of [...this._uploads.values(), ...this._incoming.values()]) {
      ended.fail(error);
    }
    for (const { reject } of this._expected.values()) {
      reject(error);
    }
    this._uploads.clear();
    this._incoming.clear();
    this._expected.clear();
    const code = typeof error.code === "number" ? error.code : null;
    this._setState({ ...stateOf(name), code, reason: error.message });
  }

  // -- for the connection ---------------------------------------------------------------------------------------------

  /** @param {Welcome} welcome */
  welcomed(welcome) {
    if (this.user !== null && welcome.user !== this.user) {
      return false; // what this user began is not to go up as somebody else's
    }
    this.user = welcome.user;
    this._recovery.initial = welcome.retry.initial;
    this._recovery.maximum = welcome.retry.max;
    this._setState(stateOf("connected"));
    return true;
  }

  /** @param {number} now */
  uploadsDue(now) {
    const due = [];
    for (const [transfer, upload] of this._uploads) {
      if (upload.due(now)) {
        due.push(upload);
      } else if (upload.done && !upload.mustTell) {
        this._uploads.delete(transfer);
      }
    }
    return due;
  }

  /** @param {DeliveryOffer} offer */
  incomingFor(offer) {
    const known = this._incoming.get(offer.transfer);
    if (known && !known.done && !known.abandoned) {
      return known;
    }
    const incoming = new Incoming(offer, this);
    this._incoming.set(offer.transfer, incoming);
    const expected = this._expected.get(offer.payload);
    if (expected) {
      this._expected.delete(offer.payload);
      incoming.claimed = true;
      expected.resolve(incoming);
    } else if (this._listeners.get("delivery")?.size) {
      queueMicrotask(() => this._emit("delivery", incoming));
    } else {
      this._unheard.push(incoming);
    }
    return incoming;
  }

  /** @param {string} transfer */
  settled(transfer) {
    return this._settled.get(transfer);
  }

  /** @param {number} chunkBytes */
  progressed(chunkBytes) {
    const proven = this._recovery.progressed(chunkBytes);
    if (proven !== null) {
      this._ceilings.remember(this.url, proven);
    }
  }

  /** @param {Upload} upload @param {string} code @param {number} wait seconds */
  postponed(upload, code, wait) {
    this._emit("waiting", { upload, code, wait });
  }

  /** @param {Incoming} incoming @param {TransferAborted} error */
  lost(incoming, error) {
    this._incoming.delete(incoming.transfer);
    incoming.fail(error);
  }

  // -- for deliveries -------------------------------------------------------------------------------------------------

  /**
   * Remember how a delivery ended, should it be offered again because our answer was lost.
   *
   * @param {Incoming} incoming
   * @param {Received | "refused"} outcome
   */
  settle(incoming, outcome) {
    this._settled.set(incoming.transfer, outcome);
    this._incoming.delete(incoming.transfer);
    if (this._settled.size > SETTLED_MOST) {
      this._settled.delete(/** @type {string} */ (this._settled.keys().next().value));
    }
  }

  /** @param {Incoming} incoming @param {"declined" | "cancelled"} verdict */
  refuse(incoming, verdict) {
    this.settle(incoming, "refused");
    if (incoming.download) {
      this._connection?.drop(incoming.download, verdict);
    }
  }

  /** @param {Incoming} incoming */
  detach(incoming) {
    if (incoming.download) {
      this._connection?.drop(incoming.download, "paused");
    }
  }
}

/** @param {ClientState["name"]} name @returns {ClientState} */
function stateOf(name) {
  return { name, code: null, reason: "", wait: null, nextAttempt: null, missing: missingHere() };
}

/** Return what this page or process lacks: on plain http beyond loopback, browsers leave these out. */
function missingHere() {
  /** @type {Array<[string, unknown]>} */
  const wanted = [
    ["crypto.subtle", globalThis.crypto?.subtle],
    ["navigator.locks", globalThis.navigator?.locks],
    ["navigator.storage", globalThis.navigator?.storage],
  ];
  return typeof document === "undefined" ? [] : wanted.filter(([, there]) => !there).map(([name]) => name);
}

/** @param {string} url @returns {string} */
function checkedUrl(url) {
  let parsed;
  try {
    parsed = new URL(url, globalThis.location?.href);
  } catch {
    throw new UsageError("expected a ws:// or wss:// URL, or one relative to the page");
  }
  if (parsed.protocol === "http:" || parsed.protocol === "https:") {
    parsed.protocol = parsed.protocol === "http:" ? "ws:" : "wss:";
  }
  if (parsed.protocol !== "ws:" && parsed.protocol !== "wss:") {
    throw new UsageError(`expected a ws:// or wss:// URL, not ${parsed.protocol}`);
  }
  parsed.hash = "";
  return parsed.href;
}

/** @param {number} chunkSize @param {string} clientId */
function checkOptions(chunkSize, clientId) {
  if (!isChunkSize(chunkSize)) {
    throw new UsageError(`chunkSize must be a power of two from 4096 to 4194304, not ${chunkSize}`);
  }
  if (clientId.length < 1 || [...clientId].length > 64) {
    throw new UsageError("clientId must have 1 to 64 characters");
  }
}

/** Return the token without the white space that copying adds. @param {string | null} token */
function checkedToken(token) {
  const stripped = token?.trim() ?? null;
  if (stripped !== null && !/^[\x21-\x7e]{1,8192}$/.test(stripped)) {
    throw new UsageError("expected a token of printable ASCII characters without spaces"); // its value is a secret
  }
  return stripped;
}

/** @param {typeof WebSocket} [given] */
function webSocketClass(given) {
  const found = given ?? globalThis.WebSocket;
  if (typeof found !== "function") {
    throw new UsageError("there is no WebSocket here: pass one as options.WebSocket");
  }
  return found;
}

function localStorageOrNull() {
  try {
    return globalThis.localStorage ?? null;
  } catch {
    return null; // forbidden in this frame
  }
}

/** @param {AbortSignal} [signal] */
function abortedBy(signal) {
  return new TransferAborted("aborted", signal?.reason instanceof Error ? signal.reason.message : "", { final: true });
}

/** `crypto.randomUUID` is missing on plain http. */
function uuid() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40; // RFC 9562 section 5.4
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

/** Return a name of at most 255 characters, its extension kept. @param {string} name */
function fitting(name) {
  const characters = [...name.toWellFormed()].filter((character) => character !== "\0");
  if (characters.length <= NAME_CHARACTERS) {
    return characters.join("");
  }
  const dot = characters.lastIndexOf(".");
  const extension = dot > 0 && characters.length - dot <= 32 ? characters.slice(dot) : [];
  return [...characters.slice(0, NAME_CHARACTERS - extension.length), ...extension].join("");
}

/**
 * Call a listener; what it throws is the page's to see, and ends nothing of ours.
 *
 * @param {(detail: any) => void} listener
 * @param {any} detail
 */
function call(listener, detail) {
  try {
    listener(detail);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

/**
 * Look after the connection when the page comes back; returns what ends that.
 *
 * @param {DeliveryClient} client
 * @returns {() => void}
 */
function listenToPage(client) {
  if (typeof window === "undefined" || typeof document === "undefined") {
    return () => {};
  }
  const visible = () => document.visibilityState === "visible" && client.probe();
  const back = () => client.probe();
  const online = () => client.nudge();
  document.addEventListener("visibilitychange", visible);
  document.addEventListener("resume", back);
  window.addEventListener("pageshow", back);
  window.addEventListener("online", online);
  return () => {
    document.removeEventListener("visibilitychange", visible);
    document.removeEventListener("resume", back);
    window.removeEventListener("pageshow", back);
    window.removeEventListener("online", online);
  };
}
