/** The chunk: one binary message of a 12-byte big-endian header and data (PROTOCOL section 3). */

import { ProtocolViolation } from "../errors.js";
import { checksum } from "./crc32c.js";

export { checksum };

export const HEADER_BYTES = 12;
export const MAX_SEQ = 2 ** 32 - 1;
export const CHUNK_SIZE_MIN = 4096;
export const CHUNK_SIZE_MAX = 4194304;

/** A received chunk. `data` is a view into the message that came, not a copy. */
export class Chunk {
  /** @param {number} handle @param {number} seq @param {number} checksum @param {Uint8Array} data */
  constructor(handle, seq, checksum, data) {
    this.handle = handle;
    this.seq = seq;
    this.checksum = checksum;
    this.data = data;
  }

  /** Return whether the data has the checksum that the header names. */
  intact() {
    return checksum(this.data) === this.checksum;
  }
}

/**
 * Return one binary message.
 *
 * @param {number} handle
 * @param {number} seq
 * @param {Uint8Array} data
 * @param {number} [crc] saves computing a checksum that is known already
 * @returns {Uint8Array<ArrayBuffer>}
 */
export function encode(handle, seq, data, crc = checksum(data)) {
  const message = new Uint8Array(HEADER_BYTES + data.length);
  const header = new DataView(message.buffer);
  header.setUint32(0, handle);
  header.setUint32(4, seq);
  header.setUint32(8, crc);
  message.set(data, HEADER_BYTES);
  return message;
}

/**
 * Split a binary message; its checksum is not looked at.
 *
 * @param {ArrayBuffer | Uint8Array} message
 * @returns {Chunk}
 * @throws {ProtocolViolation} where the header is cut short or no data follows it: data is never empty
 */
export function decode(message) {
  const bytes = message instanceof Uint8Array ? message : new Uint8Array(message);
  if (bytes.length <= HEADER_BYTES) {
    throw new ProtocolViolation("chunk without data");
  }
  const header = new DataView(bytes.buffer, bytes.byteOffset, HEADER_BYTES);
  const data = bytes.subarray(HEADER_BYTES);
  return new Chunk(header.getUint32(0), header.getUint32(4), header.getUint32(8), data);
}

/** Return whether `value` is a power of two from 4,096 to 4,194,304 bytes. @param {number} value */
export function isChunkSize(value) {
  return value >= CHUNK_SIZE_MIN && value <= CHUNK_SIZE_MAX && (value & (value - 1)) === 0;
}

/** Return how many chunks a payload of `size` bytes has. @param {number} size @param {number} chunkSize */
export function chunkCount(size, chunkSize) {
  return Math.ceil(size / chunkSize);
}

/**
 * Return the accepted chunk size in bytes (PROTOCOL section 2).
 *
 * It is the largest power of two above neither the offered size nor the receiver's announced one that divides the
 * `stored` length; anything divides nothing, and everything.
 *
 * @param {number} offered
 * @param {number} announced
 * @param {number} stored
 * @param {number | null} size
 */
export function agreedChunkSize(offered, announced, stored, size) {
  let chosen = Math.min(offered, announced);
  if (stored && stored !== size) {
    while (stored % chosen !== 0) {
      chosen /= 2; // powers of two: exact, and 1 divides everything
    }
  }
  return chosen;
}
