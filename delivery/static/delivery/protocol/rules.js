/**
 * What a control message may contain: the strict JSON of PROTOCOL section 1, and a rule for each kind of member.
 *
 * A rule takes a parsed value and returns it, or throws `RuleError` with a fixed phrase that never repeats the value.
 * `JSON.parse` is not enough: it hides duplicate members, numbers written as fractions, and large integers.
 */

import { ProtocolViolation } from "../errors.js";
import { NACK_CODES } from "./codes.js";
import { MAX_SEQ, isChunkSize } from "./frames.js";

export const MAX_DEPTH = 8;
export const MAX_INTEGER = Number.MAX_SAFE_INTEGER;
export const MIN_MAX_MESSAGE = 65548;
export const MAX_META_STRINGS = 32;
export const MAX_META_BYTES = 8192;
export const MAX_LOG_CHARACTERS = 1024;

/** @typedef {(value: any) => any} Rule */

/** A value breaks a rule; the message is a fixed phrase. */
export class RuleError extends Error {}

/** A number that was written with a fraction or an exponent: no integer, even where its value is whole. */
export class Fraction {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }
}

const encoder = new TextEncoder();

/** Return how many bytes of UTF-8 `text` has. @param {string} text */
export function utf8Length(text) {
  return encoder.encode(text).length;
}

/** Return how many characters (code points) `text` has. @param {string} text */
export function characters(text) {
  let count = 0;
  for (const _ of text) {
    count += 1;
  }
  return count;
}

// -- strict JSON ----------------------------------------------------------------------------------------------------

const SPACE = /[ \t\n\r]*/y;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?/y;
// eslint-disable-next-line no-control-regex
const STRING = /"(?:[^"\\\u0000-\u001f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"/y;
const LONE_SURROGATE = /\p{Surrogate}/u;
const LITERALS = /** @type {const} */ ([
  ["true", true],
  ["false", false],
  ["null", null],
]);

/**
 * Return the one JSON object that `text` holds, without a prototype. Numbers with a fraction or exponent are
 * `Fraction`s.
 *
 * @param {string} text
 * @param {number} maxBytes of UTF-8
 * @returns {Record<string, any>}
 * @throws {ProtocolViolation} where the text is too long, nests deeper than 8, repeats a member, or holds a number or
 *   string that section 1 forbids
 */
export function parseObject(text, maxBytes) {
  if (LONE_SURROGATE.test(text)) {
    throw new ProtocolViolation("lone surrogate");
  }
  if (text.length > maxBytes || (text.length * 3 > maxBytes && utf8Length(text) > maxBytes)) {
    throw new ProtocolViolation("control message too long");
  }
  return new Parser(text).parse();
}

/** A recursive parser of one text; it recurses at most as deep as messages may nest. */
class Parser {
  /** @param {string} text */
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  parse() {
    this.space();
    if (this.text[this.at] !== "{") {
      throw new ProtocolViolation(this.isJson() ? "control message is not an object" : "control message is not JSON");
    }
    const value = this.object(1);
    this.space();
    if (this.at !== this.text.length) {
      throw new ProtocolViolation("control message is not JSON");
    }
    return value;
  }

  isJson() {
    this.value(0);
    this.space();
    return this.at === this.text.length;
  }

  space() {
    this.match(SPACE);
  }

  /** Step over what matches here; return the match. @param {RegExp} pattern */
  match(pattern) {
    pattern.lastIndex = this.at;
    const found = pattern.exec(this.text);
    if (found) {
      this.at = pattern.lastIndex;
    }
    return found;
  }

  /** @param {string} character */
  skip(character) {
    this.space();
    if (this.text[this.at] !== character) {
      return false;
    }
    this.at += 1;
    return true;
  }

  /** @param {string} character */
  expect(character) {
    if (!this.skip(character)) {
      throw new ProtocolViolation("control message is not JSON");
    }
  }

  /** @param {number} depth of what holds the value @returns {any} */
  value(depth) {
    this.space();
    const first = this.text[this.at];
    if (first === "{" || first === "[") {
      if (depth >= MAX_DEPTH) {
        throw new ProtocolViolation("control message too deep");
      }
      return first === "{" ? this.object(depth + 1) : this.array(depth + 1);
    }
    return first === '"' ? this.string() : this.scalar();
  }

  /** @param {number} depth */
  object(depth) {
    /** @type {Record<string, any>} */
    const members = Object.create(null);
    this.expect("{");
    if (this.skip("}")) {
      return members;
    }
    do {
      this.space();
      const name = this.string();
      if (name in members) {
        throw new ProtocolViolation("duplicate member");
      }
      this.expect(":");
      members[name] = this.value(depth);
    } while (this.skip(","));
    this.expect("}");
    return members;
  }

  /** @param {number} depth */
  array(depth) {
    /** @type {any[]} */
    const items = [];
    this.expect("[");
    if (this.skip("]")) {
      return items;
    }
    do {
      items.push(this.value(depth));
    } while (this.skip(","));
    this.expect("]");
    return items;
  }

  string() {
    const found = this.match(STRING);
    if (!found) {
      throw new ProtocolViolation("control message is not JSON");
    }
    const value = /** @type {string} */ (JSON.parse(found[0]));
    if (value.includes("\0")) {
      throw new ProtocolViolation("NUL in a string");
    }
    if (LONE_SURROGATE.test(value)) {
      throw new ProtocolViolation("lone surrogate");
    }
    return value;
  }

  scalar() {
    for (const [word, value] of LITERALS) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    const found = this.match(NUMBER);
    if (!found) {
      throw new ProtocolViolation("control message is not JSON");
    }
    return found[1] || found[2] ? fraction(found[0]) : wholeNumber(found[0]);
  }
}

/** @param {string} digits */
function fraction(digits) {
  const value = Number(digits);
  if (!Number.isFinite(value)) {
    throw new ProtocolViolation("number is not finite");
  }
  return new Fraction(value);
}

/** @param {string} digits */
function wholeNumber(digits) {
  const value = Number(digits);
  if (digits.length > 16 || !(value >= 0 && value <= MAX_INTEGER)) {
    throw new ProtocolViolation("integer out of range");
  }
  return value + 0; // -0 is 0
}

// -- rules for members ----------------------------------------------------------------------------------------------

/** @param {number} [low] @param {number} [high] @returns {Rule} */
export function integer(low = 0, high = MAX_INTEGER) {
  return (value) => {
    if (!Number.isInteger(value)) {
      throw new RuleError("expected an integer");
    }
    if (value < low || value > high) {
      throw new RuleError("out of range");
    }
    return value;
  };
}

export const handle = integer(1, MAX_SEQ);
export const seq = integer(0, MAX_SEQ);

/** @type {Rule} */
export function boolean(value) {
  if (typeof value !== "boolean") {
    throw new RuleError("expected true or false");
  }
  return value;
}

/** @type {Rule} */
export function seconds(value) {
  const number = value instanceof Fraction ? value.value : value;
  if (typeof number !== "number") {
    throw new RuleError("expected a number");
  }
  if (!(number >= 0)) {
    throw new RuleError("out of range");
  }
  return number;
}

/** @type {Rule} */
export function positiveSeconds(value) {
  const number = seconds(value);
  if (number === 0) {
    throw new RuleError("out of range");
  }
  return number;
}

/** @param {number} low characters @param {number} high characters @returns {Rule} */
export function text(low, high) {
  return (value) => {
    if (typeof value !== "string") {
      throw new RuleError("expected a string");
    }
    const length = characters(value);
    if (length < low || length > high) {
      throw new RuleError("out of range");
    }
    return value;
  };
}

/** A list of strings; how many is bounded by the message's length alone. @type {Rule} */
export function texts(value) {
  if (!Array.isArray(value) || value.some((item) => typeof item !== "string")) {
    throw new RuleError("expected a list of strings");
  }
  return value;
}

/** Text for logs: as long as it likes on the wire, cut to what a log wants. @type {Rule} */
export function logText(value) {
  if (typeof value !== "string") {
    throw new RuleError("expected a string");
  }
  return value.length > MAX_LOG_CHARACTERS ? [...value].slice(0, MAX_LOG_CHARACTERS).join("") : value;
}

/** @param {Rule} rule @returns {Rule} */
export function nullable(rule) {
  return (value) => (value === null ? null : rule(value));
}

/** @param {RegExp} pattern anchored at both ends @param {string} phrase @returns {Rule} */
function matching(pattern, phrase) {
  return (value) => {
    if (typeof value !== "string") {
      throw new RuleError("expected a string");
    }
    if (!pattern.test(value)) {
      throw new RuleError(phrase);
    }
    return value;
  };
}

export const identifier = matching(/^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$/, "expected a UUID");
export const digest = matching(/^[0-9a-f]{64}$/, "expected 64 lower-case hex digits");

/** @type {Rule} */
export function chunkSize(value) {
  if (!Number.isInteger(value)) {
    throw new RuleError("expected an integer");
  }
  if (!isChunkSize(value)) {
    throw new RuleError("expected a power of two from 4096 to 4194304");
  }
  return value;
}

/** @type {Rule} */
export function nackCode(value) {
  if (typeof value !== "string" || !NACK_CODES.has(value)) {
    throw new RuleError("expected checksum or lost");
  }
  return value;
}

/** @param {any} value @returns {value is Record<string, any>} */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Fraction);
}

/** @type {Rule} */
export function meta(value) {
  if (!isObject(value) || Object.values(value).some((item) => typeof item !== "string")) {
    throw new RuleError("expected a flat object of strings");
  }
  const entries = Object.entries(value);
  const bytes = entries.reduce((sum, [name, item]) => sum + utf8Length(name) + utf8Length(item), 0);
  if (entries.length > MAX_META_STRINGS || bytes > MAX_META_BYTES) {
    throw new RuleError("out of range");
  }
  return { ...value };
}

/** @type {Rule} */
export function retry(value) {
  if (!isObject(value) || !("initial" in value && "max" in value)) {
    throw new RuleError("expected initial and max");
  }
  return { initial: seconds(value.initial), max: seconds(value.max) };
}
