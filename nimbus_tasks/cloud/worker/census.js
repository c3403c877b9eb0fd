/**
 * The census: a listing of all pages of the project, by their small statuses, and what it adds up
 * to. It lists 1,000 pages an operation and may have two fifths of a tick's: 400,000 pages. Where
 * there are more, the next tick goes on, and only a census that is at its end counts.
 */

import { PAGES_HELD, Tally, isFinal } from "./batches.js";
import { STATES, id, idOf, idUnder, isEarly, isFresh } from "./fields.js";
import { queueKey, queuePrefix, statusKey } from "./fields.js";
import { isObject, iso } from "./kv.js";
import { hasLapsed, small } from "./records.js";

const SHARE = 0.4; // of a tick's operations
const LATELY_MS = 60_000;
const MOST_KEPT = 5000; // of the missing items: as many as a tick sends

export class Census {
  ticks = 0; // that it has taken
  inFlight = 0;
  endedLately = 0; // pages that ended within the last minute
  missing = []; // the keys of the items that queued pages should have and have not
  cursor = undefined; // where the next tick goes on, if this one is not at the end

  /** `heads` are the batches, and `before` is what the tick before has left of it, if anything. */
  constructor(heads, before) {
    const { tallies = [], ...counts } = before ?? {};
    Object.assign(this, counts);
    this.tallies = new Map(tallies.map(([batch, tally]) => [batch, new Tally(tally)]));
    this.lapsed = []; // pages of this tick
    this.postponed = new Set(); // batches whose snapshot is for another tick
    if (!before) this.#holdStates(heads);
  }

  /** What the next tick is to know of it, as JSON: the states of pages are too many for that. */
  get rest() {
    const { tallies, lapsed, postponed, ...counts } = this;
    const bare = [...tallies].map(([batch, tally]) => [batch, { ...tally, states: null }]);
    return { ...counts, tallies: bare };
  }

  /**
   * Go on with it, as far as this tick comes. `queue` is the listing of the first items; `sent` are
   * those that have been sent, and may be claimed by now.
   */
  async take(cx, queue, sent) {
    const items = new Set([...sent.keys(), ...queue.keys.map(({ name }) => name)]);
    const itemOf = new Map([...items].map((item) => [idOf(item), item]));
    const [now, lately] = [iso(), iso(Date.now() - LATELY_MS)];
    this.ticks += 1;
    do {
      for (let [page, status] of await this.#nextListing(cx)) {
        // Queued anew (a retry), which KV does not show yet: else its batch would seem to be over.
        if (itemOf.has(page) && isEarly(cx, itemOf.get(page), status.updated))
          status = { status: "queued", batch_id: status.batch_id, updated: now };
        if (!this.tallies.has(status.batch_id)) this.tallies.set(status.batch_id, new Tally());
        this.tallies.get(status.batch_id).add(page, status);
        if (hasLapsed(status, now)) this.lapsed.push(page);
        else if (status.status === "processing") this.inFlight += 1;
        else if (status.completed > lately) this.endedLately += 1;
        else if (status.status === "queued" && !queue.cursor && !isFresh(cx, status.updated)) {
          // The listing of the queue is whole, and has had the time to show the item.
          const item = itemFor(cx, page, status, itemOf);
          if (!items.has(item)) this.missing.push(item);
        }
      }
      this.missing.splice(MOST_KEPT);
    } while (this.cursor && cx.kv.left > cx.operations * (1 - SHARE));
  }

  /** The pages of the next listing, each with its small status. */
  async #nextListing({ kv, project }) {
    const prefix = statusKey(project, "");
    const { keys, cursor } = await kv.list(prefix, this.cursor);
    this.cursor = cursor;
    const pages = [];
    const bare = []; // their writer, the seed's, gave no metadata
    for (const { name, metadata } of keys) {
      const page = idUnder(prefix, name);
      if (page === undefined) continue;
      if (STATES.includes(metadata?.status) && id(metadata.batch_id)) pages.push([page, metadata]);
      else bare.push(name);
    }
    for (const [name, status] of await kv.getMany(bare))
      if (isObject(status)) pages.push([idOf(name), small(status)]);
    return pages;
  }

  /**
   * Hold the states of the pages of open batches, of as many as there is memory for, in any order:
   * the others wait for another tick. A batch that alone has more than that does not wait: its
   * snapshot has no states.
   */
  #holdStates(heads) {
    const open = [...heads.values()].filter((one) => !isFinal(one) && one.page_count <= PAGES_HELD);
    let room = PAGES_HELD;
    for (const { id, page_count } of open.sort(() => Math.random() - 0.5)) {
      room -= page_count;
      if (room < 0) this.postponed.add(id);
      else this.tallies.set(id, new Tally({ states: new Map() }));
    }
  }
}

/** The item of a queued page. A writer may not say which: then any that there is will do. */
const itemFor = (cx, page, status, itemOf) =>
  queueKey(cx.project, page, status) ??
  itemOf.get(page) ??
  `${queuePrefix(cx.project)}05:0:${page}`;
