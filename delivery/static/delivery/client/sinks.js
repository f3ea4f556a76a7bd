/** Where the bytes of a delivery go: into memory, or through a stream to whoever reads it. */

import { IntegrityError, UsageError } from "../errors.js";
import { Sha256 } from "./sha256.js";

/**
 * What was received.
 *
 * @typedef {{size: number, sha256: string}} Received
 */

/**
 * What an `Incoming` receives into. `position`: bytes that it has for good. `write` keeps blocks in their order and
 * resolves once more may come. `finish` resolves when all is kept and the digest is one of `expected`.
 *
 * @typedef {object} Sink
 * @property {number} position
 * @property {(blocks: Uint8Array[]) => Promise<void>} write
 * @property {(expected: Set<string>) => Promise<Received>} finish
 * @property {(reason: unknown) => void} fail lets go of everything; nothing more comes
 */

/** @param {string} sha256 @param {number} size @param {Set<string>} expected @returns {Received} */
function checked(sha256, size, expected) {
  if ([...expected].some((digest) => digest !== sha256)) {
    throw new IntegrityError("the digest of what was received differs from the sender's", { code: "digest" });
  }
  return { size, sha256 };
}

/** Bytes in memory. @implements {Sink} */
export class MemorySink {
  /** @param {number | null} size bytes, null where it is not known @param {number} limit the most bytes to take */
  constructor(size, limit) {
    this.position = 0;
    this._limit = limit;
    this._bytes = new Uint8Array(size ?? 0);
  }

  /** What was received so far. */
  get bytes() {
    return this._bytes.subarray(0, this.position);
  }

  /** @param {Uint8Array[]} blocks */
  async write(blocks) {
    for (const block of blocks) {
      this._reserve(this.position + block.length);
      this._bytes.set(block, this.position);
      this.position += block.length;
    }
  }

  /** @param {number} needed bytes */
  _reserve(needed) {
    if (needed > this._limit) {
      throw new UsageError(`more than the ${this._limit} bytes that may be received into memory`);
    }
    if (needed > this._bytes.length) {
      const larger = new Uint8Array(Math.min(this._limit, Math.max(needed, 2 * this._bytes.length)));
      larger.set(this._bytes.subarray(0, this.position));
      this._bytes = larger;
    }
  }

  /** @param {Set<string>} expected */
  async finish(expected) {
    return checked(await digestOf(this.bytes), this.position, expected);
  }

  fail() {
    this._bytes = new Uint8Array(0);
  }
}

/**
 * Return the SHA-256 of `bytes`: off this thread where the platform can, which it can't on plain http.
 *
 * @param {Uint8Array<ArrayBuffer>} bytes
 */
async function digestOf(bytes) {
  const subtle = globalThis.crypto?.subtle;
  if (!subtle) {
    return new Sha256().update(bytes).hex();
  }
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A `ReadableStream` for whoever reads: what is not read yet is not acknowledged either. @implements {Sink} */
export class StreamSink {
  /** @param {(reason: unknown) => void} cancelled called where the reader gives up */
  constructor(cancelled) {
    this.position = 0;
    this._hash = new Sha256();
    /** @type {ReadableStreamDefaultController<Uint8Array> | null} */
    this._controller = null;
    /** @type {(() => void) | null} */
    this._roomFound = null;
    /** @type {ReadableStream<Uint8Array>} */
    this.stream = new ReadableStream({
      start: (controller) => {
        this._controller = controller;
      },
      pull: () => this._foundRoom(),
      cancel: (reason) => {
        this._controller = null;
        this._foundRoom();
        cancelled(reason);
      },
    });
  }

  _foundRoom() {
    this._roomFound?.();
    this._roomFound = null;
  }

  /** @param {Uint8Array[]} blocks */
  async write(blocks) {
    for (const block of blocks) {
      while (this._controller !== null && (this._controller.desiredSize ?? 0) <= 0) {
        await new Promise((resolve) => {
          this._roomFound = () => resolve(undefined);
        });
      }
      this._controller?.enqueue(block);
      this._hash.update(block);
      this.position += block.length;
    }
  }

  /** @param {Set<string>} expected */
  async finish(expected) {
    const received = checked(this._hash.hex(), this.position, expected);
    this._controller?.close();
    this._controller = null;
    return received;
  }

  /** @param {unknown} reason */
  fail(reason) {
    this._controller?.error(reason);
    this._controller = null;
    this._foundRoom();
  }
}
