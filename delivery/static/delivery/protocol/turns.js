/** Fair turns: several transfers share one connection, chunk by chunk, so that a small one passes a large one. */

/** @import { Sender } from "./sender.js" */

/** The order in which live senders take their turns. */
export class Turns {
  constructor() {
    /** @type {number[]} handles */
    this._order = [];
  }

  /**
   * Let a new sender take part, before all others: a small payload is not to wait for a large one's chunk.
   *
   * @param {number} handle
   */
  join(handle) {
    this._order.unshift(handle);
  }

  /** @param {number} handle */
  leave(handle) {
    this._order.splice(this._order.indexOf(handle), 1);
  }

  /**
   * Return whose turn it is: a sender that has a chunk or `finish` to send. Each comes after all others did.
   *
   * @param {ReadonlyMap<number, Sender>} senders by handle
   * @returns {Sender | null}
   */
  take(senders) {
    const finishing = this._order.find((handle) => senders.get(handle)?.finishDue());
    if (finishing !== undefined) {
      return senders.get(finishing) ?? null; // a finish is short, and what it ends waits for it
    }
    const next = this._order.findIndex((handle) => senders.get(handle)?.chunkDue());
    if (next < 0) {
      return null;
    }
    const sender = senders.get(this._order[next]) ?? null;
    this._order.push(...this._order.splice(0, next + 1));
    return sender;
  }
}
