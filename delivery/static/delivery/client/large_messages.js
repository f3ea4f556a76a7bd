/**
 * Large messages on a site's own socket, which carries only a pointer to each (PROTOCOL section 8).
 *
 * The socket stays the program's; the bytes go over a client of their own. The counterpart of `LargeMessageMixin`.
 */

import { UsageError } from "../errors.js";
import { MEMORY_BYTES } from "./download.js";

/** @import { DeliveryClient } from "./client.js" */
/** @import { Progress } from "./progress.js" */

const POINTER = "delivery.large";
const INLINE_BYTES = 65536;

/** Sends and receives messages of any size on a site's own socket. */
export class LargeMessages {
  /**
   * @param {WebSocket} socket the site's own
   * @param {DeliveryClient} client made with `receive: true`
   * @param {{limit?: number, maxSize?: number}} [options] bytes: `limit`, the largest message that the socket carries
   *   itself (the site's `large_limit`); `maxSize`, the largest to fetch
   */
  constructor(socket, client, { limit = INLINE_BYTES, maxSize = MEMORY_BYTES } = {}) {
    this._socket = socket;
    this._client = client;
    this._limit = limit;
    this._maxSize = maxSize;
    /** @type {Promise<unknown>} messages are handed on in the order in which they came */
    this._order = Promise.resolve();
    /** @type {Set<(message: any) => void>} */
    this._listeners = new Set();
    /** @type {Set<(error: unknown) => void>} */
    this._errorListeners = new Set();
    this._onMessage = (/** @type {MessageEvent} */ event) => this._receive(event.data);
    socket.addEventListener("message", this._onMessage);
  }

  /**
   * Send a message: as it is where it is small, else as a pointer once it is stored.
   *
   * @param {unknown} content text or bytes as they are, any other value as JSON
   * @param {{onProgress?: (progress: Progress) => void, signal?: AbortSignal}} [options]
   * @throws {UsageError} where the socket is not open
   */
  async sendMessage(content, options) {
    const { data, contentType } = encoded(content);
    const size = typeof data === "string" ? new TextEncoder().encode(data).length : data.byteLength;
    if (size <= this._limit) {
      this._send(data);
      return;
    }
    const receipt = await this._client.send(data, { ...options, name: "", contentType });
    const { payload } = receipt;
    this._send(JSON.stringify({ type: POINTER, payload, size: receipt.size, content_type: contentType }));
  }

  /** @param {string | ArrayBuffer | Uint8Array<ArrayBuffer>} data */
  _send(data) {
    if (this._socket.readyState !== 1) {
      throw new UsageError("the site's socket is not open");
    }
    this._socket.send(data);
  }

  /**
   * Call `listener` with each message: text or bytes as they came, JSON of a large one parsed by the program. `error`
   * gets what went wrong with a large message.
   *
   * @param {"message" | "error"} name
   * @param {(detail: any) => void} listener
   * @returns {() => void} what ends that
   */
  on(name, listener) {
    const listeners = name === "message" ? this._listeners : this._errorListeners;
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Listen to the socket no more. */
  close() {
    this._socket.removeEventListener("message", this._onMessage);
  }

  /** @param {unknown} data */
  _receive(data) {
    const pointer = pointerOf(data);
    const message = pointer === null ? Promise.resolve(data) : this._fetch(pointer);
    message.catch(() => {}); // told below, in its turn
    this._order = this._order.then(async () => {
      try {
        const value = await message;
        this._listeners.forEach((listener) => listener(value));
      } catch (error) {
        this._errorListeners.forEach((listener) => listener(error));
      }
    });
  }

  /** @param {{payload: string, content_type: string}} pointer */
  async _fetch(pointer) {
    const incoming = await this._client.expect(pointer.payload);
    const options = { limit: this._maxSize };
    return incoming.contentType === "application/octet-stream" ? incoming.bytes(options) : incoming.text(options);
  }
}

/** @param {unknown} content @returns {{data: string | ArrayBuffer | Uint8Array<ArrayBuffer>, contentType: string}} */
function encoded(content) {
  if (content instanceof ArrayBuffer) {
    return { data: content, contentType: "application/octet-stream" };
  }
  if (ArrayBuffer.isView(content)) {
    const { buffer, byteOffset, byteLength } = content;
    const data = new Uint8Array(/** @type {ArrayBuffer} */ (buffer), byteOffset, byteLength);
    return { data, contentType: "application/octet-stream" };
  }
  if (typeof content === "string") {
    return { data: content, contentType: "text/plain; charset=utf-8" };
  }
  const data = JSON.stringify(content);
  if (data === undefined) {
    throw new UsageError(`expected text, bytes or a value that JSON can hold, not ${typeof content}`);
  }
  return { data, contentType: "application/json" };
}

/**
 * Return the message if it is a pointer.
 *
 * @param {unknown} message
 * @returns {{payload: string, content_type: string} | null}
 */
function pointerOf(message) {
  if (typeof message !== "string" || !message.includes(POINTER)) {
    return null;
  }
  try {
    const found = JSON.parse(message);
    return found?.type === POINTER ? found : null;
  } catch {
    return null;
  }
}
