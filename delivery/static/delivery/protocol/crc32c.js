/**
 * CRC-32C (Castagnoli), the checksum of a chunk (PROTOCOL section 3; polynomial of RFC 3720 section 12.1, reflected).
 *
 * Eight tables let one step take eight bytes ("slicing by 8"), about eight times as fast as one table.
 */

const POLYNOMIAL = 0x82f63b78;
const SLICES = 8;

/** One array of eight tables of 256 entries: a single typed array keeps the loop free of bounds checks. */
const TABLE = makeTable();

function makeTable() {
  const table = new Uint32Array(SLICES * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) {
      crc = crc & 1 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    }
    table[byte] = crc;
  }
  for (let index = 256; index < table.length; index++) {
    const before = table[index - 256];
    table[index] = (before >>> 8) ^ table[before & 0xff];
  }
  return table;
}

/**
 * Return the CRC-32C of `data` as an unsigned 32-bit number.
 *
 * @param {Uint8Array} data
 * @param {number} [before] the checksum of what `data` follows
 * @returns {number}
 */
export function checksum(data, before = 0) {
  const table = TABLE;
  const length = data.length;
  const whole = length - (length % SLICES);
  let crc = ~before;
  let at = 0;
  for (; at < whole; at += SLICES) {
    crc ^= data[at] | (data[at + 1] << 8) | (data[at + 2] << 16) | (data[at + 3] << 24);
    crc =
      table[1792 + (crc & 0xff)] ^
      table[1536 + ((crc >>> 8) & 0xff)] ^
      table[1280 + ((crc >>> 16) & 0xff)] ^
      table[1024 + (crc >>> 24)] ^
      table[768 + data[at + 4]] ^
      table[512 + data[at + 5]] ^
      table[256 + data[at + 6]] ^
      table[data[at + 7]];
  }
  for (; at < length; at++) {
    crc = (crc >>> 8) ^ table[(crc ^ data[at]) & 0xff];
  }
  return ~crc >>> 0;
}
