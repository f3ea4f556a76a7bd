/** The vectors that Python and JavaScript share. */
import { readFileSync } from "node:fs";

/** @param {string} name */
export function vectors(name) {
  return JSON.parse(readFileSync(new URL(`../../vectors/${name}.json`, import.meta.url), "utf8"));
}

/** @param {string} text */
export function bytes(text) {
  return new Uint8Array(Buffer.from(text, "hex"));
}

/** A text may be a list of strings and repetitions, joined. @param {any} given */
export function textOf(given) {
  const parts = Array.isArray(given) ? given : [given];
  return parts.map((part) => (typeof part === "string" ? part : part.repeat.repeat(part.times))).join("");
}
