import assert from "node:assert/strict";
import test from "node:test";
import { Recovery } from "../../../delivery/static/delivery/protocol/backoff.js";
import { vectors } from "./vectors.js";

/** @param {Record<string, any>} given @param {Record<string, string>} names */
const renamed = (given, names) => Object.fromEntries(Object.entries(given).map(([key, value]) => [names[key] ?? key, value]));
const CLOSED = { retry_after: "retryAfter", welcomed_seconds: "welcomedSeconds", chunk_size: "chunkSize" };
const PLAN = { chunk_size: "chunkSize" };

for (const { name, start, steps } of vectors("reactions").sequences) {
  test(name, () => {
    const recovery = new Recovery(renamed(start, PLAN));
    for (const { closed, refused, progressed, random, plan, ...rest } of steps) {
      assert.deepEqual(rest, {}, "a step of a kind that this test does not know");
      if (progressed !== undefined) {
        assert.equal(recovery.progressed(progressed.chunk_bytes), progressed.remember);
      } else {
        const found = refused ? recovery.refused(random) : recovery.closed(renamed(closed, CLOSED), random);
        assert.deepEqual(found, renamed(plan, PLAN));
      }
    }
  });
}
