/**
 * The census: a listing of all pages of the project, by their small statuses, and what it adds up
 * to. It lists 1,000 pages an operation and may have two fifths of a tick's: 400,000 pages. Where
 * there are more, the next tick goes on, and the census that came to its end is what counts.
 */

import { PAGES_HELD, Tally, isFinal } from "./batches.js";
import { isObject, iso } from "./kv.js";
import {
  CLOCK_SKEW_MS,
  STATES,
  hasLapsed,
  id,
  idOf,
  idUnder,
  queueKey,
  small,
  statusKey,
} from "./records.js";

const SHARE = 0.4; // of a tick's operations
const LATELY_MS = 60_000;
const MOST_KEPT = 5000; // of pages that have lapsed, or are in no queue: more than a tick can mend

export class Census {
  ticks = 0; // that it has taken
  counted = 0;
  inFlight = 0;
  endedLately = 0; // pages that ended within the last minute
  lost = []; // the keys of the items that queued pages should have and have not
  cursor = undefined; // where the next tick goes on

  /** `heads` are the batches, and `before` is what the tick before has left of it, if anything. */
  constructor(heads, before) {
    const { tallies = [], ...counts } = before ?? {};
    Object.assign(this, counts);
    this.tallies = new Map(tallies.map(([batch, tally]) => [batch, new Tally(tally)]));
    this.lapsed = []; // pages of this tick
    this.waiting = new Set(); // batches whose snapshot is for another tick
    if (!before) this.#holdStates(heads);
  }

  /** What the next tick is to know of it, as JSON. */
  get rest() {
    const { tallies, lapsed, waiting, ...counts } = this;
    return { ...counts, tallies: [...tallies] };
  }

  /** Go on with it, as far as this tick comes. `queue` and `handed` are those of missingFrom. */
  async take(cx, queue, handed) {
    const { kv, operations } = cx;
    const missing = missingFrom(cx, queue, handed);
    const [now, lately, soon] = [0, -LATELY_MS, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
    this.ticks += 1;
    do {
      for (const [page, status] of await this.#nextListing(cx)) {
        this.#tally(page, status);
        if (hasLapsed(status, now)) this.lapsed.push(page);
        else if (status.status === "processing") this.inFlight += 1;
        else if (status.completed > lately && status.completed < soon) this.endedLately += 1;
        else if (status.status === "queued") this.lost.push(...missing(page, status));
      }
      this.lapsed.splice(MOST_KEPT);
      this.lost.splice(MOST_KEPT);
    } while (this.cursor && kv.left > operations * (1 - SHARE));
    if (this.cursor) this.#dropStates();
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

  #tally(page, status) {
    this.counted += 1;
    if (!this.tallies.has(status.batch_id)) this.tallies.set(status.batch_id, new Tally());
    this.tallies.get(status.batch_id).add(page, status);
  }

  /**
   * Hold the states of the pages of open batches, of as many as there is memory for; which is the
   * first of them changes every minute. A batch that alone has more than that does not wait: its
   * snapshot has no states.
   */
  #holdStates(heads) {
    const open = [...heads.values()].filter((one) => !isFinal(one) && one.pageCount <= PAGES_HELD);
    const first = Math.floor(Date.now() / 60_000) % (open.length || 1);
    let room = PAGES_HELD;
    for (const head of [...open.slice(first), ...open.slice(0, first)]) {
      room -= head.pageCount;
      if (room < 0) this.waiting.add(head.id);
      else this.tallies.set(head.id, new Tally({ states: new Map() }));
    }
  }

  /** They do not last from one tick to the next: then no batch has any. */
  #dropStates() {
    for (const tally of this.tallies.values()) tally.states = null;
    this.waiting.clear();
  }
}

/**
 * Which item a queued page should have and has not (none, or one): a function of page and small
 * status. Only where `queue`, the first items, is all of it can one be missing. `handed` are items
 * that are gone, though reads may show them still.
 */
function missingFrom({ project, lagSeconds }, queue, handed) {
  const keys = new Set(queue.keys.map(({ name }) => name));
  const pages = new Set([...keys].map(idOf));
  const [fresh, soon] = [-1000 * lagSeconds, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
  return (page, status) => {
    // The item of a page that was queued just now may not be seen yet.
    const isFresh = lagSeconds && status.updated > fresh && status.updated < soon;
    if (queue.cursor || isFresh) return [];
    const key = queueKey(project, page, status);
    if (key === null) return pages.has(page) ? [] : [`queue:${project}:05:0:${page}`];
    return keys.has(key) || handed.has(key) ? [] : [key];
  };
}
