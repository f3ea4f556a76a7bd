/**
 * Every code on the wire, once: its text, whether trying again can help, and what a client does about it.
 *
 * Implements the tables of PROTOCOL sections 2, 3, 5 and 6; checked against Python's by the shared vectors.
 */

/**
 * What a client does when its connection closed (PROTOCOL section 6, last column).
 *
 * @enum {string}
 */
export const Reaction = /** @type {const} */ ({
  STOP: "stop", // reconnecting by itself cannot help
  RETURN: "return", // wait `retry_after`, reconnect, resume
  BACKOFF: "backoff", // wait by exponential backoff, reconnect, resume
  SHRINK: "shrink", // halve the chunk size, reconnect, resume
  WAIT: "wait", // wait `retry_after`, 5 s where none was given, resume
});

/** @typedef {{reason: string, reaction: string}} CloseCode its fixed reason phrase, and the client's reaction */

/** @type {ReadonlyMap<number, CloseCode>} */
export const CLOSE_CODES = new Map([
  [1000, { reason: "done", reaction: Reaction.STOP }],
  [1001, { reason: "going away", reaction: Reaction.RETURN }],
  [1003, { reason: "binary message before hello", reaction: Reaction.STOP }],
  [1006, { reason: "connection lost", reaction: Reaction.BACKOFF }],
  [1007, { reason: "text is not UTF-8", reaction: Reaction.STOP }],
  [1008, { reason: "policy", reaction: Reaction.STOP }],
  [1009, { reason: "message too big", reaction: Reaction.SHRINK }],
  [1011, { reason: "internal error", reaction: Reaction.BACKOFF }],
  [1012, { reason: "service restart", reaction: Reaction.RETURN }],
  [1013, { reason: "overloaded, try again later", reaction: Reaction.WAIT }],
  [4400, { reason: "protocol violation", reaction: Reaction.STOP }],
  [4401, { reason: "login expired", reaction: Reaction.STOP }],
  [4408, { reason: "no hello in time", reaction: Reaction.BACKOFF }],
  [4429, { reason: "too many connections or offers", reaction: Reaction.WAIT }],
]);

export const MAX_REASON_BYTES = 123; // RFC 6455 section 5.5: a control frame carries 125 bytes, two of them the code

/**
 * Return what a client does after `code`; an unknown code is backed off from, as a lost connection is.
 *
 * @param {number} code
 * @returns {string}
 */
export function reactionTo(code) {
  return CLOSE_CODES.get(code)?.reaction ?? Reaction.BACKOFF;
}

/** @typedef {{text: string, retryable: boolean}} Verdict English text for logs, and whether offering again can help */

/** @param {Array<[string, string, boolean?]>} entries @returns {ReadonlyMap<string, Verdict>} */
function table(entries) {
  return new Map(entries.map(([code, text, retryable = false]) => [code, { text, retryable }]));
}

export const REJECT_CODES = table([
  ["forbidden", "not allowed, or no such address"],
  ["too_large", "the payload is larger than allowed"],
  ["quota", "the user's quota is used up"],
  ["rate", "too many offers, try again later", true],
  ["busy", "nobody can take this now, try again later", true],
  ["mismatch", "size or digest contradict the stored transfer"],
  ["expired", "the transfer has expired"],
  ["cancelled", "the transfer was cancelled"],
  ["declined", "the receiver does not want it"],
  ["unsupported", "the receiver cannot take this kind of payload"],
  ["taken_over", "a newer connection holds the transfer"],
  ["draining", "the server is going away", true],
]);

export const ABORT_CODES = table([
  ["cancelled", "the transfer was cancelled"],
  ["digest", "the SHA-256 of what was stored differs from the sender's"],
  ["too_large", "the payload is larger than allowed"],
  ["expired", "the transfer has expired"],
  ["forbidden", "no longer allowed"],
  ["taken_over", "a newer connection holds the transfer"],
  ["paused", "paused by the other side"],
  ["stalled", "no progress for too long", true],
  ["integrity", "bytes arrived damaged three times", true],
  ["storage_unavailable", "storage does not take or give bytes", true],
  ["busy", "nobody can take this now, try again later", true],
]);

/** @type {ReadonlySet<string>} */
export const FINAL_ABORT_CODES = new Set(["cancelled", "digest", "too_large", "expired", "forbidden"]);

/** @type {ReadonlySet<string>} */
export const NACK_CODES = new Set(["checksum", "lost"]);

/**
 * Why the server goes away, and the close code that follows (PROTOCOL section 6).
 *
 * @type {ReadonlyMap<string, number>}
 */
export const GOING_AWAY_CODES = new Map([
  ["worker_draining", 1001],
  ["server_draining", 1001],
  ["overloaded", 1013],
  ["rate", 4429],
]);
