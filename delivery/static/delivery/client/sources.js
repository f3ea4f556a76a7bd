/**
 * Where the bytes of an upload come from: a File or Blob, bytes, text, JSON, a stream, or an iterable of bytes.
 *
 * A source outlives connections. It owns its one pull: no connection cancels it, the next one awaits the same, and only the
 * source's own end is an end. Everything else that ends it is an error, with which the upload fails.
 */

import { IntegrityError, UsageError } from "../errors.js";

const EMPTY = new Uint8Array(0);

/**
 * What an upload reads from. `size` is null until it is known. `read` returns exactly `length` bytes, fewer only where
 * the payload ends there, and then `size` is known. `forget` says that bytes below `offset` are not asked for again.
 *
 * @typedef {object} Source
 * @property {number | null} size bytes
 * @property {string} name "" where it has none
 * @property {string} contentType "" where it has none
 * @property {(offset: number, length: number) => Promise<Uint8Array>} read
 * @property {(offset: number) => void} forget
 * @property {() => Promise<void>} close ends a pull that is under way; to be called once, when the upload has ended
 */

/**
 * Return the source of `payload`.
 *
 * @param {unknown} payload File, Blob, ArrayBuffer, typed array, string, ReadableStream, iterable or async iterable of
 *   bytes or strings; any other value that JSON can hold
 * @returns {Source}
 * @throws {UsageError} for what is none of these
 */
export function openSource(payload) {
  if (payload instanceof Blob) {
    return new BlobSource(payload);
  }
  if (typeof payload === "string") {
    return new BytesSource(new TextEncoder().encode(payload), "text/plain; charset=utf-8");
  }
  if (payload instanceof ArrayBuffer || ArrayBuffer.isView(payload)) {
    return new BytesSource(bytesOf(payload), "");
  }
  const pull = pullOf(payload);
  return pull ? new StreamSource(pull) : new BytesSource(jsonBytes(payload), "application/json");
}

/** @param {ArrayBuffer | ArrayBufferView} data @returns {Uint8Array} a view, not a copy */
function bytesOf(data) {
  return data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
}

/** @param {unknown} value */
function jsonBytes(value) {
  let text;
  try {
    text = JSON.stringify(value);
  } catch (cause) {
    throw new UsageError("expected a value that JSON can hold", { cause });
  }
  if (text === undefined) {
    throw new UsageError(`expected a File, Blob, bytes, text, a stream or a JSON value, not ${typeof value}`);
  }
  return new TextEncoder().encode(text);
}

/**
 * Return what pulls the next value out of a stream or iterable, null for anything else. An array is a JSON value.
 *
 * @param {any} payload
 * @returns {AsyncIterator<unknown> | Iterator<unknown> | null}
 */
function pullOf(payload) {
  if (typeof payload !== "object" || payload === null || Array.isArray(payload)) {
    return null;
  }
  if (typeof payload.getReader === "function") {
    return readerIterator(payload.getReader());
  }
  const begin = payload[Symbol.asyncIterator] ?? payload[Symbol.iterator];
  return typeof begin === "function" && !(payload instanceof Map) && !(payload instanceof Set) ? begin.call(payload) : null;
}

/**
 * Safari's ReadableStream is no async iterable.
 *
 * @param {ReadableStreamDefaultReader<unknown>} reader
 * @returns {AsyncIterator<unknown>}
 */
function readerIterator(reader) {
  return {
    next: async () => /** @type {IteratorResult<unknown>} */ (await reader.read()),
    return: async () => {
      await reader.cancel();
      return { done: true, value: undefined };
    },
  };
}

/** A File or Blob, read slice by slice. @implements {Source} */
export class BlobSource {
  /** @param {Blob} blob */
  constructor(blob) {
    this._blob = blob;
    this.size = blob.size;
    this.name = blob instanceof File ? blob.name : "";
    this.contentType = blob.type;
  }

  /** @param {number} offset @param {number} length */
  async read(offset, length) {
    let buffer;
    try {
      buffer = await this._blob.slice(offset, offset + length).arrayBuffer();
    } catch (cause) {
      // NotReadableError and NotFoundError: the file was changed, moved or removed since it was picked.
      throw new IntegrityError(`${this.name || "the file"} cannot be read any more: it was changed or removed`, {
        code: "source",
        cause,
      });
    }
    if (buffer.byteLength !== Math.min(length, this.size - offset)) {
      throw new IntegrityError(`${this.name || "the file"} became shorter while it was sent: send it again`, {
        code: "source",
      });
    }
    return new Uint8Array(buffer);
  }

  forget() {}

  async close() {}
}

/** Bytes in memory. @implements {Source} */
export class BytesSource {
  /** @param {Uint8Array} bytes @param {string} contentType */
  constructor(bytes, contentType) {
    this._bytes = bytes;
    this.size = bytes.length;
    this.name = "";
    this.contentType = contentType;
  }

  /** @param {number} offset @param {number} length */
  async read(offset, length) {
    return this._bytes.subarray(offset, offset + length);
  }

  forget() {}

  async close() {
    this._bytes = EMPTY;
  }
}

/**
 * A stream or iterable, of unknown size until it ends. Keeps what was pulled and not forgotten: at most the window that
 * the server gives, and the last value.
 *
 * @implements {Source}
 */
export class StreamSource {
  /** @param {AsyncIterator<unknown> | Iterator<unknown>} iterator */
  constructor(iterator) {
    /** @type {number | null} */
    this.size = null;
    this.name = "";
    this.contentType = "";
    this._iterator = iterator;
    /** @type {Uint8Array[]} */
    this._kept = [];
    this._keptFrom = 0; // the offset at which `_kept` begins
    this._pulled = 0; // bytes
    /** @type {Promise<void> | null} the one pull that is under way */
    this._pull = null;
    this._failed = false;
    /** @type {unknown} */
    this._error = null;
  }

  /** @param {number} offset @param {number} length */
  async read(offset, length) {
    if (offset < this._keptFrom) {
      throw new IntegrityError("the server asks for bytes of a stream that it had acknowledged: send it again");
    }
    while (this.size === null && this._pulled < offset + length) {
      await this._pullOnce();
    }
    return this._copy(offset, Math.min(offset + length, this._pulled));
  }

  /** Await the pull that is under way, or begin one: whoever awaits it may leave, the pull goes on. */
  _pullOnce() {
    if (this._failed) {
      return Promise.reject(this._error);
    }
    this._pull ??= this._next().finally(() => {
      this._pull = null;
    });
    return this._pull;
  }

  async _next() {
    try {
      const { done, value } = await this._iterator.next();
      if (done) {
        this.size = this._pulled;
      } else {
        this._keep(chunkBytes(value));
      }
    } catch (error) {
      this._failed = true;
      this._error = error;
      throw error;
    }
  }

  /** @param {Uint8Array} data */
  _keep(data) {
    if (data.length > 0) {
      this._kept.push(data.slice()); // a producer may use its buffer again
      this._pulled += data.length;
    }
  }

  /** @param {number} start @param {number} end */
  _copy(start, end) {
    const copy = new Uint8Array(Math.max(0, end - start));
    let at = this._keptFrom;
    for (const data of this._kept) {
      const from = Math.max(start, at);
      const to = Math.min(end, at + data.length);
      if (from < to) {
        copy.set(data.subarray(from - at, to - at), from - start);
      }
      at += data.length;
      if (at >= end) {
        break;
      }
    }
    return copy;
  }

  /** @param {number} offset */
  forget(offset) {
    while (this._kept.length > 0 && this._keptFrom + this._kept[0].length <= offset) {
      this._keptFrom += this._kept[0].length;
      this._kept.shift();
    }
  }

  async close() {
    this._kept = [];
    if (!this._failed && this.size === null) {
      this._failed = true;
      this._error = new UsageError("the upload has ended");
      try {
        await this._iterator.return?.();
      } catch {
        // what a producer throws while it is told to end changes nothing any more
      }
    }
  }
}

/** @param {unknown} value @returns {Uint8Array} */
function chunkBytes(value) {
  if (typeof value === "string") {
    return new TextEncoder().encode(value);
  }
  if (value instanceof ArrayBuffer || ArrayBuffer.isView(value)) {
    return bytesOf(value);
  }
  throw new UsageError(`expected a stream of bytes or text, got ${value === null ? "null" : typeof value}`);
}
