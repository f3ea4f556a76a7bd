import assert from "node:assert/strict";
import test from "node:test";
import * as frames from "../../../delivery/static/delivery/protocol/frames.js";
import { bytes, vectors } from "./vectors.js";

const shared = vectors("frames");

for (const { name, data, crc32c } of shared.checksums) {
  test(`checksum: ${name}`, () => assert.equal(frames.checksum(bytes(data)), crc32c));
}

test("a checksum goes on from the one before", () => {
  const data = Uint8Array.from({ length: 1000 }, (_, index) => (index * 131) & 255);
  for (const cut of [0, 1, 7, 8, 9, 500, 999, 1000]) {
    const first = frames.checksum(data.subarray(0, cut));
    assert.equal(frames.checksum(data.subarray(cut), first), frames.checksum(data));
  }
});

for (const { name, hex, handle, seq, checksum, data, intact } of shared.valid) {
  test(`decode: ${name}`, () => {
    const chunk = frames.decode(bytes(hex));
    assert.deepEqual([chunk.handle, chunk.seq, chunk.checksum], [handle, seq, checksum]);
    assert.deepEqual(new Uint8Array(chunk.data), bytes(data));
    assert.equal(chunk.intact(), intact);
    assert.deepEqual(frames.encode(handle, seq, bytes(data), checksum), bytes(hex));
  });
}

for (const { name, hex, close } of shared.invalid) {
  test(`refused: ${name}`, () => assert.throws(() => frames.decode(bytes(hex)), { code: close }));
}

for (const { name, value, valid } of shared.chunk_sizes) {
  test(`chunk size: ${name ?? value}`, () => assert.equal(frames.isChunkSize(value), valid));
}

for (const { name, offered, announced, stored, size, chunk_size, seq, chunks } of vectors("chunk_sizes").agreed) {
  test(`agreed: ${name}`, () => {
    const total = size === null && stored % frames.CHUNK_SIZE_MIN !== 0 ? stored : size; // its short last chunk is in it
    const chosen = frames.agreedChunkSize(offered, announced, stored, total);
    assert.equal(chosen, chunk_size);
    assert.equal(frames.chunkCount(stored, chosen), seq);
    assert.equal(total === null ? null : frames.chunkCount(total, chosen), chunks);
  });
}
