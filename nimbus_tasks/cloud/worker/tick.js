/**
 * A tick of the cron trigger: the one coordinator of the project.
 *
 * It looks at all pages (census.js), takes up claims that have lapsed, claims in the order of the
 * queue what the consumers do in about two minutes, and brings the batch records up to date. An
 * invocation may do 1,000 operations on KV, and has 128 MB:
 *
 * - A claim costs two operations (status written, item removed), so a tick claims some 280 to 450
 *   pages itself; what is to be claimed beyond that it hands to the consumer in groups of keys,
 *   each claimed with an invocation's operations of its own.
 * - What no operation is left for waits for the next tick. Of the pages themselves it keeps what
 *   batches.js holds.
 *
 * Two ticks at once (KV has no locks) lose nothing: the later claim of a page is the one that
 * counts, and the consumer drops the other. Where reads lag, a page may then be worked on twice.
 */

import { isFinal, readHeads, saveSnapshot } from "./batches.js";
import { Census } from "./census.js";
import { open } from "./context.js";
import { MESSAGES_A_SEND, claimItems, sendAll, takeUpLapsed } from "./pages.js";
import { STATES, idUnder, number, object, small } from "./records.js";

const OPERATIONS_A_CLAIM = 2.02; // status, item, and a hundredth of a bulk read
const OPERATIONS_A_LAPSE = 4.02; // status, item, log read and written
const OPERATIONS_A_SNAPSHOT = 6; // pages taken over, record, listing, record, and what is kept
const WANTED_AN_OPERATION = 5; // claimed or handed out in a tick, at most: 5,000
/** So many ticks' worth is claimed at once where the census takes several: a lease has to last. */
const MAX_TICKS = 4;
/**
 * A tick takes seconds; one of 400 listings, each after the other, a minute. One that Cloudflare
 * has ended (its CPU, its memory) keeps one other from its work.
 */
const LOCK_SECONDS = 110;
/** A batch that is open and in which nothing happens is looked at so often. */
const QUIET_SECONDS = 600;

/** Returns what it did, for the log. */
export async function tick(env) {
  const cx = open(env);
  const heads = await readHeads(cx);
  const queue = await cx.kv.list(`queue:${cx.project}:`); // its first thousand items
  // A project at rest costs two listings a tick.
  if (!queue.keys.length && [...heads.values()].every(isFinal)) return { idle: true };
  const memory = await recall(cx);
  if (memory.isLocked) return { busy: true };
  if (!queue.keys.length && memory.isQuiet) return { idle: true };
  const { handed, pass } = memory;
  // A record and no lock: KV may show it too late. It keeps ticks apart that follow each other.
  await remember(cx, { until: Date.now() + 1000 * LOCK_SECONDS, handed });
  const next = { handed };
  try {
    return await work(cx, heads, queue, new Census(heads, pass), next);
  } finally {
    await remember(cx, next);
  }
}

/** `census` may have begun in a tick before; `next` is what the next tick is to know. */
async function work(cx, heads, queue, census, next) {
  const isCancelled = (batch) => heads.get(batch)?.intent === "cancel";
  const operations = () => cx.operations - cx.kv.left;

  await census.take(cx, queue, next.handed);
  const room = roomFor(cx, OPERATIONS_A_LAPSE);
  const lapsed = await takeUpLapsed(cx, census.lapsed.slice(0, room), isCancelled);
  if (census.cursor) {
    next.pass = census.rest;
    return { counted: census.counted, lapsed, operations: operations() };
  }

  const items = await firstItems(cx, queue, census, next.handed);
  const ours = items.slice(0, roomFor(cx, OPERATIONS_A_CLAIM));
  const { claimed, used } = await claimItems(cx, ours, isCancelled);
  const groups = await handOut(cx, items.slice(ours.length));
  for (const item of [...used, ...groups]) next.handed.set(item, Date.now());

  const { snapshots, left } = await sumUp(cx, heads, census);
  const isQuiet = !(lapsed + items.length + snapshots + left + census.inFlight);
  if (isQuiet && !queue.keys.length) next.quiet = Date.now() + 1000 * QUIET_SECONDS;
  return { claimed, handed: groups.length, lapsed, snapshots, operations: operations() };
}

/** How often there are operations for what costs so many; a twentieth is for what comes after. */
function roomFor({ kv, operations }, cost) {
  const spare = Math.max(OPERATIONS_A_SNAPSHOT, operations / 20);
  return Math.max(0, Math.floor((kv.left - spare) / cost));
}

/**
 * How many pages to claim: what is done in two minutes, and at the beginning what is worked on at
 * once and as much again. A claim that waits in the Queue for longer than its lease would be taken
 * up twice.
 */
function wanted(cx, { ticks, inFlight, endedLately }) {
  const inTwoMinutes = 2 * Math.max(cx.concurrency, endedLately);
  const aTick = Math.min(WANTED_AN_OPERATION * cx.operations, inTwoMinutes);
  return Math.max(0, Math.min(MAX_TICKS, ticks) * aTick - inFlight);
}

/**
 * The keys of the first items, with those that the queue should have, but those that were handed
 * out while reads may still show them.
 */
async function firstItems(cx, queue, census, handed) {
  const most = wanted(cx, census);
  const items = [...census.lost];
  let { keys, cursor } = queue;
  for (;;) {
    for (const { name } of keys) if (!handed.has(name)) items.push(name);
    if (!cursor || items.length >= census.lost.length + most) break;
    ({ keys, cursor } = await cx.kv.list(`queue:${cx.project}:`, cursor));
  }
  return items.sort().slice(0, most);
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

/** Bring batch records up to date: how many were written, and how many are left for later. */
async function sumUp(cx, heads, { tallies, waiting }) {
  let [snapshots, left] = [0, 0];
  for (const head of heads.values()) {
    const tally = tallies.get(head.id);
    if (!tally || (isFinal(head) && !tally.isOpen)) continue;
    let saved = "later";
    if (!waiting.has(head.id) && cx.kv.left >= OPERATIONS_A_SNAPSHOT) {
      const refused = await cx.kv.all([head], async () => {
        await addSuperseded(cx, head, tally);
        saved = await saveSnapshot(cx, head, tally);
      });
      if (refused.size) saved = "as it is";
    }
    if (saved === "written") snapshots += 1;
    if (saved === "later") left += 1;
  }
  return { snapshots, left };
}

/** Pages that a later batch took over, as they were then. */
async function addSuperseded({ kv, project }, head, tally) {
  if (tally.seen >= head.pageCount) return;
  const prefix = `superseded:${project}:${head.id}:`;
  for await (const { name, metadata } of kv.scan(prefix)) {
    const page = idUnder(prefix, name);
    if (page === undefined || tally.states?.has(page) || tally.seen >= head.pageCount) continue;
    if (STATES.includes(metadata?.status)) tally.add(page, metadata);
    else if (kv.left > 0) tally.add(page, small(object(await kv.get(name))));
  }
}

/**
 * What the tick before has left: what was handed out lately, by key, and when; its census, if that
 * is not at its end; whether a tick is at work, or there was nothing to do.
 */
async function recall({ kv, project, lagSeconds }) {
  const { until, quiet, pass, handed } = object(await kv.get(memoryKey(project)));
  const [now, since] = [Date.now(), Date.now() - 3000 * lagSeconds];
  const lasts = (at, seconds) => number(at) > now && at <= now + 1000 * seconds;
  return {
    isLocked: lasts(until, LOCK_SECONDS),
    isQuiet: lasts(quiet, QUIET_SECONDS),
    pass,
    handed: new Map(Object.entries(object(handed)).filter(([, at]) => at > since)),
  };
}

const memoryKey = (project) => `cloud:${project}:tick`;
const remember = ({ kv, project }, { handed, ...memory }) =>
  kv.put(memoryKey(project), { ...memory, handed: Object.fromEntries(handed) });
