/**
 * Replays what was done to a Python `Connection` on the JavaScript one, and says what it answered.
 *
 * One line of standard input is one exchange: `{side, limits, now, heartbeat, ops}`. One line of standard output holds its
 * outcomes, in the form of `exchanges.py`.
 */

import { createInterface } from "node:readline";
import { Connection } from "../../delivery/static/delivery/protocol/connection.js";
import { checksum, encode } from "../../delivery/static/delivery/protocol/frames.js";
import { Limits } from "../../delivery/static/delivery/protocol/limits.js";
import * as messages from "../../delivery/static/delivery/protocol/messages.js";

/** What an op does, by its name. @type {Record<string, (core: Connection, op: any) => any>} */
const OPS = {
  hello: (core, { message }) => core.hello(decoded(message, messages.FROM_CLIENT)),
  welcome: (core, { message }) => core.welcome(decoded(message, messages.FROM_SERVER)),
  text: (core, { text, now }) => core.receiveText(text, now),
  bytes: (core, { now, ...chunk }) => core.receiveBytes(binary(chunk), now),
  offer: (core, { message, first, now }) => {
    core.offer(decoded(message, core.side === "client" ? messages.FROM_CLIENT : messages.FROM_SERVER), { first, now });
  },
  turn: (core, { sha256, now }) => {
    const sender = core.nextTurn();
    if (sender === null) {
      return null;
    }
    if (sender.finishDue()) {
      core.finish(sender, sha256);
      return [sender.handle, "finish"];
    }
    const span = sender.nextSpan();
    sender.chunkSent(span.seq, now);
    core.sent(now);
    return [sender.handle, span.seq, span.offset, span.length];
  },
  end: (core, { handle, size }) => core.senders.get(handle).end(size),
  accept: (core, { handle, stored, terms, now, hold, size }) => {
    const [window, segmentSize, maxSize] = terms;
    return core.accept(core.receivers.get(handle), { stored, terms: { window, segmentSize, maxSize }, now, hold, size });
  },
  reject: (core, { handle, code }) => core.reject(core.receivers.get(handle), code),
  run: (core, { handle, now, rest }) => {
    const receiver = core.receivers.get(handle);
    const run = rest ? receiver.rest(now) : receiver.nextRun(now);
    return run === null ? null : [run.start, run.end];
  },
  stored: (core, { handle, seq }) => core.receivers.get(handle).onStored(seq),
  rewind: (core, { handle, seq, code }) => core.rewind(core.receivers.get(handle), seq, code),
  done: (core, { handle, size, sha256 }) => core.done(core.receivers.get(handle), { size, sha256 }),
  abort: (core, { sends, handle, code, final }) => {
    core.abort((sends ? core.senders : core.receivers).get(handle), code, "", { final });
  },
  hold: (core, { handle, held }) => (held ? core.receivers.get(handle).hold() : core.receivers.get(handle).release()),
  resize: (core, { handle, window }) => core.receivers.get(handle).resize(window),
  acks: (core, { now }) => core.queueAcks(now),
  tick: (core, { now }) => core.tick(now),
  leave: (core, { reason, retry_after }) => core.leave(reason, retry_after),
  stalled: (core, { now }) => [...core.senders.values()].map((sender) => sender.stalled(now)),
};

/** @param {any} message @param {any} kinds */
const decoded = (message, kinds) => messages.decode(JSON.stringify(message), kinds);

/** @param {{handle: number, seq: number, length: number, fill: number, intact: boolean}} chunk */
function binary({ handle, seq, length, fill, intact }) {
  const data = new Uint8Array(length).fill(fill);
  return encode(handle, seq, data, intact ? checksum(data) : (checksum(data) ^ 1) >>> 0);
}

/** @param {any} result */
function said(result) {
  const events = Array.isArray(result) && result[0]?.kind ? result : null;
  return events ? events.map(({ kind }) => kind) : (result ?? null);
}

/** @param {Connection} core */
function seen(core) {
  const outbox = core.outbox.splice(0).map((message) => JSON.parse(core.encode(message)));
  const senders = [...core.senders.values()].map(({ handle, state, acked, received, nextSeq, sent, limit, size }) => [
    handle, state, acked, received, nextSeq, sent, limit, size,
  ]);
  const receivers = [...core.receivers.values()].map(({ handle, state, stored, received, handed, limit, size }) => [
    handle, state, stored, received, handed, limit, size,
  ]);
  return { outbox, senders, receivers, wake_at: core.wakeAt() };
}

/** @param {Connection} core @param {any} op */
function outcome(core, op) {
  try {
    const result = said(OPS[op.op](core, op));
    return { result, ...seen(core) };
  } catch (error) {
    if (error.name === "ProtocolViolation" || error.name === "MessagesLost") {
      return { error: [error.name, error.code, error.reason] };
    }
    if (["UsageError", "Refused"].includes(error.name)) {
      return { error: [error.name] };
    }
    throw error;
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { side, limits, now, heartbeat, ops } = JSON.parse(line);
  const [maxMessage, chunkSize, earlyData] = limits;
  const core = new Connection(side, new Limits({ maxMessage, chunkSize, earlyData }), { now, heartbeat });
  process.stdout.write(`${JSON.stringify(ops.map((op) => outcome(core, op)))}\n`);
}
