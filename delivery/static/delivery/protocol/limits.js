/** What each side of a connection announces about itself, and which chunks fit into it (PROTOCOL section 1). */

import { ProtocolViolation } from "../errors.js";
import { HEADER_BYTES } from "./frames.js";

export const MAX_UNANSWERED_OFFERS = 16;

/** @enum {string} */
export const Side = /** @type {const} */ ({ CLIENT: "client", SERVER: "server" });

/** Return the largest power of two that is not above `value`. @param {number} value at least 1, below 2^53 */
export function powerOfTwoWithin(value) {
  return 2 ** Math.floor(Math.log2(value));
}

/** What one side announces, in bytes: largest message, preferred chunk, largest payload that may come early. */
export class Limits {
  /** @param {{maxMessage: number, chunkSize: number, earlyData?: number}} announced */
  constructor({ maxMessage, chunkSize, earlyData = 0 }) {
    this.maxMessage = maxMessage;
    this.chunkSize = chunkSize;
    this.earlyData = earlyData;
  }

  /** Return the largest chunk size that fits `chunkSize` and a header into `maxMessage`. */
  fitting() {
    return Math.min(this.chunkSize, powerOfTwoWithin(this.maxMessage - HEADER_BYTES));
  }
}

/**
 * Return the limits of the peer that said `message`.
 *
 * @param {{maxMessage: number, chunkSize: number, earlyData: number}} message a `hello` or `welcome`
 * @throws {ProtocolViolation} where its chunks and their header would not fit into its largest message
 */
export function announced(message) {
  if (message.chunkSize + HEADER_BYTES > message.maxMessage) {
    throw new ProtocolViolation("chunk_size does not fit into max_message");
  }
  return new Limits(message);
}
