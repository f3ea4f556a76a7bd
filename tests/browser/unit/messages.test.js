import assert from "node:assert/strict";
import test from "node:test";
import * as messages from "../../../delivery/static/delivery/protocol/messages.js";
import { textOf, vectors } from "./vectors.js";

const shared = vectors("messages");
/** @param {string} from */
const kindsOf = (from) =>
  ({ client: [messages.FROM_CLIENT], server: [messages.FROM_SERVER], both: [messages.FROM_CLIENT, messages.FROM_SERVER] })[from];
/** @param {string} name */
const camelCase = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());

for (const { name, from, text, means } of shared.valid) {
  test(`decode: ${name}`, () => {
    for (const kinds of kindsOf(from)) {
      const decoded = messages.decode(textOf(text), kinds);
      const expected = Object.fromEntries(
        Object.entries(means).map(([key, value]) => [key === "sender" ? "from" : camelCase(key), value]),
      );
      const { type, ...fields } = decoded;
      assert.deepEqual(JSON.parse(JSON.stringify(fields)), expected);
      assert.deepEqual(messages.decode(messages.encode(decoded, kinds), kinds), decoded);
    }
  });
}

for (const { name, from, text, close } of shared.invalid) {
  test(`refused: ${name}`, () => {
    for (const kinds of kindsOf(from)) {
      assert.throws(() => messages.decode(textOf(text), kinds), { name: "ProtocolViolation", code: close });
    }
  });
}

test("a message that the peer would refuse is not sent", () => {
  const offer = { type: "ping", id: -1 };
  assert.throws(() => messages.encode(offer, messages.FROM_CLIENT), { name: "UsageError" });
});
