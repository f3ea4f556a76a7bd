/**
 * Control messages: strict decoding, encoding (PROTOCOL sections 1 to 6).
 *
 * A message is a plain object with its `type`, its members in camelCase (on the wire they are in snake_case). This module
 * knows members and their ranges. It does not know what may be said when: that is `connection`'s.
 */

import { ProtocolViolation, UsageError } from "../errors.js";
import { CHUNK_SIZE_MIN, HEADER_BYTES } from "./frames.js";
import { powerOfTwoWithin } from "./limits.js";
import * as rules from "./rules.js";

export const MAX_CONTROL_BYTES = 65536;
export const DEFAULT_CHUNK_SIZE = 262144;

/**
 * Sizes are bytes, times seconds.
 *
 * @typedef {{type: "hello", client: string, maxMessage: number, receive: boolean, chunkSize: number, earlyData: number,
 *   token: string | null, groups: string[]}} Hello
 * @typedef {{type: "welcome", version: number, session: string, user: string | null, groups: string[],
 *   maxMessage: number, chunkSize: number, window: number, earlyData: number, heartbeat: number,
 *   retry: {initial: number, max: number}}} Welcome
 * @typedef {{type: "offer", transfer: string, handle: number, name: string, size: number | null, contentType: string,
 *   chunkSize: number, sha256: string | null, meta: Record<string, string>}} Offer
 * @typedef {Offer & {to: string[]}} UploadOffer
 * @typedef {Offer & {payload: string, from: string | null, expires: string | null}} DeliveryOffer
 * @typedef {{type: "accept", transfer: string, handle: number, chunkSize: number, seq: number, limit: number,
 *   expires: string | null}} Accept
 * @typedef {{type: "reject", transfer: string, handle: number, code: string, message: string, maxSize: number | null,
 *   retryAfter: number | null}} Reject
 * @typedef {{type: "ack", handle: number, seq: number, received: number, limit: number}} Ack
 * @typedef {{type: "nack", handle: number, seq: number, code: string}} Nack
 * @typedef {{type: "finish", handle: number, chunks: number, size: number, sha256: string | null}} Finish
 * @typedef {{type: "done", transfer: string, handle: number, size: number, sha256: string,
 *   payload: string | null}} Done a client's, for a delivery, has no `payload`
 * @typedef {{type: "abort", transfer: string, handle: number, code: string, message: string, final: boolean,
 *   retryAfter: number | null}} Abort
 * @typedef {{type: "ping", id: number}} Ping
 * @typedef {{type: "pong", id: number}} Pong
 * @typedef {{type: "going_away", reason: string, retryAfter: number | null}} GoingAway
 * @typedef {Hello | Welcome | UploadOffer | DeliveryOffer | Accept | Reject | Ack | Nack | Finish | Done | Abort | Ping |
 *   Pong | GoingAway} Message
 */

/**
 * A member of a message: its rule, whether it must be there, its value where it is left out, and whether null is left
 * out on the wire.
 *
 * @typedef {{rule: rules.Rule, required: boolean, otherwise: () => any, omitNull: boolean}} Member
 * @typedef {Readonly<Record<string, Member>>} Members by name on the wire
 */

/** @param {rules.Rule} rule @returns {Member} */
function required(rule) {
  return { rule, required: true, otherwise: () => undefined, omitNull: false };
}

/** @param {rules.Rule} rule @param {() => any} otherwise @param {{omitNull?: boolean}} [options] @returns {Member} */
function optional(rule, otherwise, { omitNull = false } = {}) {
  return { rule, required: false, otherwise, omitNull };
}

const nothing = () => null;
const transfer = required(rules.identifier);
const handle = required(rules.handle);
const seq = required(rules.seq);
const chunkSize = required(rules.chunkSize);
const earlyData = optional(rules.integer(), () => 0);
const groups = optional(rules.texts, () => []);
const expires = optional(rules.nullable(rules.text(0, 64)), nothing);
const retryAfter = optional(rules.nullable(rules.seconds), nothing, { omitNull: true });
const code = required(rules.text(1, 64));
const message = optional(rules.logText, () => "");

/** @type {Members} */
const HELLO = {
  client: required(rules.text(1, 64)),
  max_message: required(rules.integer(rules.MIN_MAX_MESSAGE)),
  receive: optional(rules.boolean, () => false),
  chunk_size: optional(rules.chunkSize, () => 0), // 0: not given; `hello` knows the default
  early_data: earlyData,
  token: optional(rules.nullable(rules.text(0, 8192)), nothing),
  groups,
};

/** @type {Members} */
const WELCOME = {
  version: required(rules.integer(1)),
  session: required(rules.text(1, 128)),
  user: required(rules.nullable(rules.text(0, 255))),
  groups,
  max_message: required(rules.integer(rules.MIN_MAX_MESSAGE)),
  chunk_size: chunkSize,
  window: required(rules.integer(1)),
  early_data: earlyData,
  heartbeat: required(rules.positiveSeconds),
  retry: optional(rules.retry, () => ({ initial: 0.5, max: 10 })),
};

/** @type {Members} */
const OFFER = {
  transfer,
  handle,
  name: required(rules.text(0, 255)),
  size: required(rules.nullable(rules.integer())),
  content_type: optional(rules.text(0, 255), () => "application/octet-stream"),
  chunk_size: chunkSize,
  sha256: optional(rules.nullable(rules.digest), nothing),
  meta: optional(rules.meta, () => ({})),
};

/** @type {Members} */
const UPLOAD_OFFER = { ...OFFER, to: optional(rules.texts, () => []) };

/** @type {Members} */
const DELIVERY_OFFER = {
  ...OFFER,
  payload: required(rules.identifier),
  from: optional(rules.nullable(rules.text(0, 255)), nothing),
  expires,
};

/** @type {Readonly<Record<string, Members>>} */
const BOTH = {
  accept: { transfer, handle, chunk_size: chunkSize, seq, limit: required(rules.integer()), expires },
  reject: {
    transfer,
    handle,
    code,
    message,
    max_size: optional(rules.nullable(rules.integer()), nothing, { omitNull: true }),
    retry_after: retryAfter,
  },
  ack: { handle, seq, received: seq, limit: required(rules.integer()) },
  nack: { handle, seq, code: required(rules.nackCode) },
  finish: {
    handle,
    chunks: seq,
    size: required(rules.integer()),
    sha256: optional(rules.nullable(rules.digest), nothing),
  },
  done: {
    transfer,
    handle,
    size: required(rules.integer()),
    sha256: required(rules.digest),
    payload: optional(rules.nullable(rules.identifier), nothing, { omitNull: true }),
  },
  abort: { transfer, handle, code, message, final: required(rules.boolean), retry_after: retryAfter },
  ping: { id: required(rules.integer()) },
  pong: { id: required(rules.integer()) },
};

/** What either side may say, by type. @type {Readonly<Record<string, Members>>} */
export const FROM_CLIENT = { ...BOTH, hello: HELLO, offer: UPLOAD_OFFER };

/** @type {Readonly<Record<string, Members>>} */
export const FROM_SERVER = {
  ...BOTH,
  welcome: WELCOME,
  offer: DELIVERY_OFFER,
  going_away: { reason: required(rules.text(1, 64)), retry_after: optional(rules.nullable(rules.seconds), nothing) },
};

/** Return the field that holds the member `name` of the wire. @param {string} name */
function fieldOf(name) {
  return name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
}

/**
 * Return the text of a message of ours.
 *
 * @param {Message} said
 * @param {Readonly<Record<string, Members>>} kinds what our side may say
 * @returns {string} JSON
 * @throws {UsageError} where the peer would refuse it
 */
export function encode(said, kinds) {
  const text = JSON.stringify({ type: said.type, ...wireMembers(said, kinds) });
  try {
    decode(text, kinds);
  } catch (error) {
    throw error instanceof ProtocolViolation ? new UsageError(error.reason) : error;
  }
  return text;
}

/** @param {Message} said @param {Readonly<Record<string, Members>>} kinds */
function wireMembers(said, kinds) {
  const values = /** @type {Record<string, any>} */ (said);
  /** @type {Record<string, any>} */
  const found = {};
  for (const [name, { omitNull }] of Object.entries(kinds[said.type] ?? {})) {
    const value = values[fieldOf(name)];
    if (value !== undefined && !(value === null && omitNull)) {
      found[name] = value;
    }
  }
  return found;
}

/**
 * Return the message that `text` holds; unknown members are ignored.
 *
 * @param {string} text
 * @param {Readonly<Record<string, Members>>} kinds `FROM_CLIENT` or `FROM_SERVER`
 * @returns {Message}
 * @throws {ProtocolViolation} (4400) for everything that section 1 forbids
 */
export function decode(text, kinds) {
  const given = rules.parseObject(text, MAX_CONTROL_BYTES);
  if (typeof given.type !== "string") {
    throw new ProtocolViolation("control message without a type");
  }
  if (!Object.hasOwn(kinds, given.type)) {
    throw new ProtocolViolation("unknown control message");
  }
  const decoded = /** @type {Message} */ ({ type: given.type, ...checked(given.type, kinds[given.type], given) });
  return decoded.type === "hello" ? hello(decoded) : decoded;
}

/** @param {string} type @param {Members} members @param {Record<string, any>} given */
function checked(type, members, given) {
  /** @type {Record<string, any>} */
  const values = {};
  for (const [name, member] of Object.entries(members)) {
    if (name in given) {
      values[fieldOf(name)] = checkedMember(type, name, member.rule, given[name]);
    } else if (member.required) {
      throw new ProtocolViolation(`${type} without ${name}`);
    } else {
      values[fieldOf(name)] = member.otherwise();
    }
  }
  return values;
}

/** @param {string} type @param {string} name @param {rules.Rule} rule @param {any} value */
function checkedMember(type, name, rule, value) {
  try {
    return rule(value);
  } catch (error) {
    if (error instanceof rules.RuleError) {
      throw new ProtocolViolation(`${type}.${name}: ${error.message}`);
    }
    throw error;
  }
}

/**
 * Return a hello with its defaults. Where no chunk size is given, it is the default, or less where that would not fit
 * into `maxMessage`.
 *
 * @param {Partial<Hello> & {client: string, maxMessage: number}} given
 * @returns {Hello}
 */
export function hello(given) {
  const room = Math.max(given.maxMessage - HEADER_BYTES, CHUNK_SIZE_MIN);
  const fitting = Math.min(DEFAULT_CHUNK_SIZE, powerOfTwoWithin(room));
  return {
    type: "hello",
    client: given.client,
    maxMessage: given.maxMessage,
    receive: given.receive ?? false,
    chunkSize: given.chunkSize || fitting,
    earlyData: given.earlyData ?? 0,
    token: given.token ?? null,
    groups: given.groups ?? [],
  };
}
