import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import test from "node:test";
import { Sha256 } from "../../../delivery/static/delivery/client/sha256.js";

/** A small generator of numbers below 2^32, so that a failure can be repeated. @param {number} seed */
function numbers(seed) {
  let state = seed >>> 0;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0);
}

/** @param {number} length @param {() => number} next */
const bytesOf = (length, next) => Uint8Array.from({ length }, () => next() >>> 24);
/** @param {Uint8Array} data */
const expected = (data) => createHash("sha256").update(data).digest("hex");

test("every length up to 1,000 bytes, split anywhere, has the digest of the platform's SHA-256", () => {
  for (let length = 0; length <= 1000; length++) {
    const next = numbers(length);
    const data = bytesOf(length, next);
    const hash = new Sha256();
    for (let at = 0; at < length; ) {
      const end = Math.min(length, at + (next() % 150));
      hash.update(data.subarray(at, end));
      at = end;
    }
    assert.equal(hash.hex(), expected(data), `${length} bytes`);
  }
});

test("large pieces at odd offsets", () => {
  const data = bytesOf(1_000_003, numbers(7));
  for (const offset of [0, 1, 3, 63, 64, 65]) {
    assert.equal(new Sha256().update(data.subarray(offset)).hex(), expected(data.subarray(offset)));
  }
});

test("the digest may be asked for in between", () => {
  const data = bytesOf(500, numbers(3));
  const hash = new Sha256().update(data.subarray(0, 100));
  assert.equal(hash.hex(), expected(data.subarray(0, 100)));
  assert.equal(hash.update(data.subarray(100)).hex(), expected(data));
});

test("a kept state goes on where it was", () => {
  const data = bytesOf(6400, numbers(5));
  for (let at = 0; at <= data.length; at += 64) {
    const kept = JSON.parse(JSON.stringify(new Sha256().update(data.subarray(0, at)).state()));
    assert.equal(new Sha256(kept).update(data.subarray(at)).hex(), expected(data));
  }
});

test("a state exists at multiples of 64 bytes only", () => {
  assert.throws(() => new Sha256().update(new Uint8Array(65)).state(), { name: "UsageError" });
  assert.throws(() => new Sha256({ words: [1, 2], length: 0 }), { name: "UsageError" });
  assert.throws(() => new Sha256({ words: [1, 2, 3, 4, 5, 6, 7, 8], length: 65 }), { name: "UsageError" });
});

test("lengths beyond 2^32 bits are counted in full", () => {
  const state = { words: new Sha256().state().words, length: 2 ** 32 };
  const low = { words: state.words, length: 0 };
  assert.notEqual(new Sha256(state).hex(), new Sha256(low).hex());
});
