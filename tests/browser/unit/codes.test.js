import assert from "node:assert/strict";
import test from "node:test";
import * as codes from "../../../delivery/static/delivery/protocol/codes.js";
import { vectors } from "./vectors.js";

const shared = vectors("codes");

test("close codes are Python's", () => {
  const ours = [...codes.CLOSE_CODES].map(([code, { reason, reaction }]) => ({ code, reason, reaction }));
  assert.deepEqual(ours, shared.close);
});

for (const [name, table] of [["reject", codes.REJECT_CODES], ["abort", codes.ABORT_CODES]]) {
  test(`${name} codes are Python's`, () => {
    const ours = [...table].map(([code, { text, retryable }]) => ({ code, text, retryable }));
    assert.deepEqual(ours, shared[name].map(({ code, text, retryable }) => ({ code, text, retryable })));
  });
}

test("final aborts are Python's", () => {
  const final = shared.abort.filter((entry) => entry.final).map((entry) => entry.code);
  assert.deepEqual([...codes.FINAL_ABORT_CODES].sort(), final.sort());
});

test("nack and going_away codes are Python's", () => {
  assert.deepEqual([...codes.NACK_CODES].sort(), [...shared.nack].sort());
  assert.deepEqual([...codes.GOING_AWAY_CODES].map(([reason, code]) => ({ reason, code })), shared.going_away);
});
