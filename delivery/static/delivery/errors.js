/**
 * The one tree of errors, with the names of `delivery/errors.py`.
 *
 *     DeliveryError
 *     ├── UsageError          local misuse: an argument or a call that cannot be right
 *     ├── ProtocolViolation   the peer broke the protocol; carries the close code and reason
 *     │   └── MessagesLost    something on the way swallowed messages; smaller chunks may pass
 *     ├── Refused             the server refused an offer; carries the wire code
 *     ├── TransferAborted     a transfer ended early; carries the wire code and whether it is final
 *     ├── ConnectionStopped   the connection cannot come back by itself; carries the close code
 *     ├── IntegrityError      bytes differ from their checksum, digest or size
 *     └── Unavailable         something that is needed is missing or full; trying again later may help
 *
 * A message says what was expected and what came. It never holds payload bytes or tokens.
 */

/** What a person is told, by code: one sentence that says what happened, and where it helps what to do. */
const WORDS = new Map(
  /** @type {Array<[string | number, string]>} */ ([
    ["forbidden", "You may not send this, or there is nobody at that address."],
    ["too_large", "The file is larger than allowed."],
    ["quota", "Your space is used up."],
    ["rate", "Too many files at once. Try again in a moment."],
    ["busy", "The server is busy. Try again in a moment."],
    ["mismatch", "This is not the file that was being sent. Send it anew."],
    ["expired", "The time for this transfer is over. Send it anew."],
    ["cancelled", "The transfer was cancelled."],
    ["declined", "The transfer was declined."],
    ["unsupported", "This kind of file is not taken here."],
    ["taken_over", "The transfer goes on in another window."],
    ["paused", "The transfer is paused and can go on later."],
    ["digest", "The file changed or was damaged on the way. Send it again."],
    ["integrity", "The file was damaged on the way. Send it again."],
    ["stalled", "Nothing has moved for a while. Try again."],
    ["storage_unavailable", "The server cannot store files at the moment. Try again later."],
    ["draining", "The server restarts. Try again in a moment."],
    ["source", "The file cannot be read any more: it was changed, moved or removed."],
    ["aborted", "The transfer was stopped."],
    [1000, "The connection is closed."],
    [1008, "The server does not allow this connection."],
    [1009, "Something between here and the server does not let messages of this size through."],
    [4401, "Log in to go on."],
  ]),
);

/** Root of every error that this package throws on purpose. */
export class DeliveryError extends Error {
  /**
   * @param {string} message
   * @param {{code?: string | number, retryable?: boolean, cause?: unknown}} [options]
   */
  constructor(message, { code = "", retryable = false, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    /** The code of the wire or of the close, "" where there is none. */
    this.code = code;
    /** Whether doing the same again can help. */
    this.retryable = retryable;
  }

  /** One plain English sentence for a person; where there is none for the code, the message. */
  get words() {
    return WORDS.get(this.code) ?? this.message;
  }
}

/** The caller passed something that cannot be right. */
export class UsageError extends DeliveryError {}

/** The peer broke the protocol: close the connection with `code` and `reason`. */
export class ProtocolViolation extends DeliveryError {
  /**
   * @param {string} reason a fixed phrase without data
   * @param {number} [code] the close code
   */
  constructor(reason, code = 4400) {
    super(reason, { code });
    this.reason = reason;
  }
}

/** Messages did not arrive although later ones did: a server closes with 1009, a client does as if it had. */
export class MessagesLost extends ProtocolViolation {
  /** @param {string} reason */
  constructor(reason) {
    super(reason, 1009);
  }
}

/** An offer is refused; `code` is a reject code of PROTOCOL section 2. */
export class Refused extends DeliveryError {
  /**
   * @param {string} code
   * @param {string} [message]
   * @param {{maxSize?: number | null, retryAfter?: number | null, retryable?: boolean}} [options] `maxSize` in bytes,
   *   `retryAfter` in seconds
   */
  constructor(code, message = "", { maxSize = null, retryAfter = null, retryable = false } = {}) {
    super(message || code, { code, retryable });
    this.maxSize = maxSize;
    this.retryAfter = retryAfter;
  }
}

/** A transfer ended early; `code` is an abort code of PROTOCOL section 5. */
export class TransferAborted extends DeliveryError {
  /**
   * @param {string} code
   * @param {string} [message]
   * @param {{final?: boolean, retryable?: boolean}} [options]
   */
  constructor(code, message = "", { final = true, retryable = !final } = {}) {
    super(message ? `${code}: ${message}` : code, { code, retryable });
    /** The message without the code. */
    this.detail = message;
    this.final = final;
  }
}

/** The server closed with a code after which reconnecting cannot help (PROTOCOL section 6). */
export class ConnectionStopped extends DeliveryError {
  /**
   * @param {number} code
   * @param {string} reason
   */
  constructor(code, reason) {
    super(`${code} ${reason}`.trim(), { code });
    this.reason = reason;
  }
}

/** Bytes differ from their checksum, digest or size. */
export class IntegrityError extends DeliveryError {}

/** Something that is needed is missing or full; trying again later may help. */
export class Unavailable extends DeliveryError {
  /**
   * @param {string} message
   * @param {{code?: string | number, cause?: unknown}} [options]
   */
  constructor(message, options = {}) {
    super(message, { ...options, retryable: true });
  }
}
