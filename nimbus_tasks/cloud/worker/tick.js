/**
 * A tick of the cron trigger: the one coordinator of the project.
 *
 * It looks at all pages, claims in the order of the queue as much as the consumers do in about two
 * minutes, takes up claims that have lapsed, and brings the batch records up to date. An invocation
 * may do 1,000 operations on KV, and has 128 MB:
 *
 * - A claim costs two operations (status written, item removed), so a tick claims some 280 to 450
 *   pages itself; what is to be claimed beyond that it hands to the consumer in groups of keys, each
 *   claimed with an invocation's operations of its own.
 * - The census lists 1,000 pages an operation, and may have two fifths of them: 400,000 pages. Of a
 *   project that has more, the next tick goes on where this one stopped; who claims and sums up is
 *   the tick that comes to the end. Of the pages themselves it keeps what batches.js holds.
 * - Mending and snapshots that no operation is left for wait for the next tick.
 *
 * Two ticks at once (KV has no locks) do no harm: the later claim of a page is the one that counts,
 * and the consumer drops the other.
 */

import { PAGES_HELD, Tally, isFinal, readHeads, saveSnapshot } from "./batches.js";
import { open } from "./context.js";
import { isObject, iso } from "./kv.js";
import { MESSAGES_A_SEND, claimItems, sendAll, takeUpLapsed } from "./pages.js";
import {
  CLOCK_SKEW_MS,
  STATES,
  hasLapsed,
  id,
  idOf,
  number,
  object,
  queueKey,
  small,
  statusKey,
} from "./records.js";

const OPERATIONS_A_CLAIM = 2.02; // status, item, and a hundredth of a bulk read
const OPERATIONS_A_LAPSE = 4.02; // status, item, log read and written
const WANTED_AN_OPERATION = 5; // claimed or handed out in a tick, at most: 5,000
const [CENSUS_SHARE, SPARE] = [0.4, 0.05]; // of the operations
/** So many ticks' worth is claimed at once where the census takes several: a lease has to last. */
const MAX_TICKS = 4;
/**
 * A tick takes seconds; one of 400 listings, each after the other, a minute. One that Cloudflare has
 * ended (its CPU, its memory) keeps one other from its work; where one takes longer, two at once do
 * no harm.
 */
const LOCK_SECONDS = 110;
/** A batch that is open and in which nothing happens is looked at so often. */
const QUIET_SECONDS = 600;

/** Returns what it did, for the log. */
export async function tick(env) {
  const cx = open(env);
  const heads = await readHeads(cx);
  const queue = await cx.kv.list(`queue:${cx.project}:`);
  // A project at rest costs two listings a tick.
  if (!queue.keys.length && [...heads.values()].every(isFinal)) return { idle: true };
  const memory = await recall(cx);
  if (memory.until) return { busy: true };
  if (!queue.keys.length && memory.quiet) return { idle: true };
  const { pass, handed } = memory;
  // A record and no lock: KV may show it too late. It keeps ticks apart that follow each other.
  await remember(cx, { until: Date.now() + 1000 * LOCK_SECONDS, handed });
  const next = { handed };
  try {
    return await work(cx, heads, queue, pass, next);
  } finally {
    await remember(cx, next);
  }
}

/**
 * `queue` are its first thousand items, `pass` is a census that is not at its end yet, and `next` what
 * the next tick is to know.
 */
async function work(cx, heads, queue, pass, next) {
  const { kv, operations } = cx;
  const spare = Math.max(6, operations * SPARE);
  const room = (cost) => Math.max(0, Math.floor((kv.left - spare) / cost));
  const isCancelled = (batch) => heads.get(batch)?.intent === "cancel";

  const { census, lapsed } = await takeCensus(cx, heads, queue, pass, next.handed);
  const taken = await takeUpLapsed(cx, lapsed.slice(0, room(OPERATIONS_A_LAPSE)), isCancelled);
  if (census.cursor) {
    next.pass = { ...census, tallies: [...census.tallies] };
    return { counted: census.counted, lapsed: taken, operations: operations - kv.left };
  }

  // What is done in two minutes, and at the beginning what is worked on at once and as much again:
  // a claim that waits in the Queue for longer than its lease would be taken up twice.
  const ticks = Math.min(MAX_TICKS, census.ticks);
  const inTwoMinutes = 2 * Math.max(cx.concurrency, census.endedLately);
  const most = ticks * Math.min(WANTED_AN_OPERATION * operations, inTwoMinutes);
  const items = await firstItems(cx, queue, census, most - census.inFlight, next.handed);
  const ours = items.slice(0, room(OPERATIONS_A_CLAIM));
  const { written, used } = await claimItems(cx, ours, isCancelled);
  const groups = await handOut(cx, items.slice(ours.length));
  for (const item of [...used, ...groups]) next.handed.set(item, Date.now());

  let [snapshots, waits] = [0, 0];
  for (const head of heads.values()) {
    const tally = census.tallies.get(head.id);
    if (!tally || (isFinal(head) && !tally.isOpen)) continue;
    const isItsTurn =
      tally.states || isFinal(head) || head.pageCount > PAGES_HELD || census.ticks > 1;
    if (!isItsTurn || kv.left < 6) waits += 1;
    else {
      await addSuperseded(cx, head, tally);
      const saved = await saveSnapshot(cx, head, tally);
      snapshots += Number(saved === "written");
      waits += Number(saved === "later");
    }
  }
  const did = taken + used.length + groups.length + snapshots + waits + census.inFlight;
  if (!did && !queue.keys.length) next.quiet = Date.now() + 1000 * QUIET_SECONDS;
  return {
    claimed: written.size,
    handed: groups.length,
    lapsed: taken,
    snapshots,
    operations: operations - kv.left,
  };
}

/**
 * All pages of the project, by a listing of their small statuses, as far as this tick comes;
 * `before` is the census so far.
 */
async function takeCensus(cx, heads, queue, before, handed) {
  const { kv, project, operations } = cx;
  // `lost` are queued pages that are in no queue, by the keys of the items that they have not.
  const nothing = { ticks: 0, counted: 0, inFlight: 0, endedLately: 0, lost: [], tallies: [] };
  const census = { ...nothing, ...before };
  census.ticks += 1;
  const tallies = new Map(census.tallies.map(([batch, tally]) => [batch, new Tally(tally)]));
  census.tallies = tallies;
  if (!before) holdStates(tallies, heads);
  const isLost = lostIn(cx, queue, handed);
  const [now, lately, soon] = [0, -60_000, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
  const lapsed = [];
  const add = (page, status) => {
    if (!tallies.has(status.batch_id)) tallies.set(status.batch_id, new Tally());
    tallies.get(status.batch_id).add(page, status);
    census.counted += 1;
    if (hasLapsed(status, now)) {
      if (lapsed.length < operations) lapsed.push(page);
    } else if (status.status === "processing") census.inFlight += 1;
    else if (status.completed > lately && status.completed < soon) census.endedLately += 1;
    else if (status.status === "queued" && census.lost.length < WANTED_AN_OPERATION * operations) {
      const key = isLost(page, status);
      if (key) census.lost.push(key);
    }
  };
  do {
    const { keys, cursor } = await kv.list(statusKey(project, ""), census.cursor);
    const bare = []; // their writer, the seed's, gave no metadata
    for (const { name, metadata } of keys) {
      const page = idOf(name);
      if (page === undefined) continue;
      if (STATES.includes(metadata?.status) && id(metadata.batch_id)) add(page, metadata);
      else bare.push(name);
    }
    for (const [name, status] of await kv.getMany(bare))
      if (isObject(status)) add(idOf(name), small(status));
    census.cursor = cursor;
  } while (census.cursor && kv.left > operations * (1 - CENSUS_SHARE));
  if (census.cursor) for (const tally of tallies.values()) tally.states = null;
  return { census, lapsed };
}

/**
 * Hold the states of pages for open batches, of as many as there is memory for; it is another's turn
 * to be the first every minute.
 */
function holdStates(tallies, heads) {
  const some = [...heads.values()].filter((head) => !isFinal(head) && head.pageCount <= PAGES_HELD);
  const first = Math.floor(Date.now() / 60_000) % (some.length || 1);
  let room = PAGES_HELD;
  for (const head of [...some.slice(first), ...some.slice(0, first)]) {
    room -= head.pageCount;
    if (room < 0) return;
    tallies.set(head.id, new Tally({ states: new Map() }));
  }
}

/**
 * Whether a queued page is in no queue: the key of the item that it should have, or undefined.
 * Only where all of the queue was seen can a page be missing from it.
 */
function lostIn({ project, lagSeconds }, queue, handed) {
  const keys = new Set(queue.keys.map((item) => item.name));
  const pages = new Set(queue.keys.map((item) => idOf(item.name)));
  const [fresh, soon] = [-1000 * lagSeconds, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
  return (page, status) => {
    // The item of a page that was queued just now may not be seen yet.
    if (queue.cursor || (lagSeconds && status.updated > fresh && status.updated < soon))
      return undefined;
    const key = queueKey(project, page, status);
    if (key === null) return pages.has(page) ? undefined : `queue:${project}:05:0:${page}`;
    return keys.has(key) || handed.has(key) ? undefined : key;
  };
}

/**
 * The keys of the first items, with those that the queue should have, but those that were handed
 * out while reads may still show them.
 */
async function firstItems({ kv, project }, queue, census, wanted, handed) {
  const items = [...census.lost];
  const enough = items.length + wanted;
  for (
    let page = queue;
    items.length < enough;
    page = await kv.list(`queue:${project}:`, page.cursor)
  ) {
    for (const { name } of page.keys) if (!handed.has(name)) items.push(name);
    if (!page.cursor) break;
  }
  return items.sort().slice(0, Math.max(0, wanted));
}

/** Send items to the consumer to be claimed there, in groups; returns those that were sent. */
async function handOut(cx, items) {
  // An invocation of the consumer may have several groups, and their claims share its operations.
  const share = Math.floor(cx.operations / cx.batchSize) - 4;
  const size = Math.max(1, Math.floor(share / OPERATIONS_A_CLAIM));
  const sends = Math.ceil(cx.operations / 100);
  const sent = items.slice(0, sends * MESSAGES_A_SEND * size);
  const groups = [];
  for (let at = 0; at < sent.length; at += size) groups.push({ claim: sent.slice(at, at + size) });
  await sendAll(cx, groups);
  return sent;
}

/** Pages that a later batch took over, as they were then. */
async function addSuperseded({ kv, project }, head, tally) {
  if (tally.seen >= head.pageCount) return;
  for await (const { name, metadata } of kv.scan(`superseded:${project}:${head.id}:`)) {
    const page = idOf(name);
    if (page === undefined || tally.states?.has(page) || tally.seen >= head.pageCount) continue;
    if (STATES.includes(metadata?.status)) tally.add(page, metadata);
    else if (kv.left > 0) tally.add(page, small(object(await kv.get(name))));
  }
}

/**
 * What the tick before has left: what was handed out lately, by key, and when; its census, if that is
 * not at its end; whether a tick is at work, or there was nothing to do.
 */
async function recall({ kv, project, lagSeconds }) {
  const found = object(await kv.get(memoryKey(project)));
  const [now, since] = [Date.now(), Date.now() - 3000 * lagSeconds];
  const lasts = (at, seconds) => number(at) > now && at <= now + 1000 * seconds;
  const handed = new Map(Object.entries(object(found.handed)).filter(([, at]) => at > since));
  return {
    until: lasts(found.until, LOCK_SECONDS),
    quiet: lasts(found.quiet, QUIET_SECONDS),
    pass: found.pass,
    handed,
  };
}

const memoryKey = (project) => `cloud:${project}:tick`;
const remember = ({ kv, project }, { handed, ...memory }) =>
  kv.put(memoryKey(project), { ...memory, handed: Object.fromEntries(handed) });
