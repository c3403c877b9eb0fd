/**
 * The cron trigger, once a minute: the one coordinator of the project. A tick
 *
 *   1. lists all pages and counts them (census.js);
 *   2. takes up claims that have lapsed: their pages are queued again, or fail;
 *   3. sends the next items to the Queue, in their order;
 *   4. writes into each batch record what its pages add up to.
 *
 * An invocation may do 1,000 operations on KV: where they run short, the next tick goes on.
 *
 * Two ticks at once (KV has no locks) lose nothing. An item may then get two messages, of which the
 * first claims the page, and the second finds nothing to do; or, where it reads a status of before
 * the claim, the page is worked on twice.
 */

import { isFinal, readHeads, sumUp } from "./batches.js";
import { Census } from "./census.js";
import { open } from "./context.js";
import { number, object, queuePrefix } from "./fields.js";
import { takeUpLapsed } from "./pages.js";

const OPERATIONS_A_LAPSE = 5; // status and log read, status, item and log written
const MESSAGES_A_SEND = 100; // the Queue's limit
/** So much is in the Queue: until the next tick, for as long as listings lag, and one to spare. */
const MINUTES_AHEAD = 3;
const ITEMS_AN_OPERATION = 5; // in the Queue at most: 5,000 items where there are 1,000 operations
const MAX_TICKS = 4; // a census that takes several ticks is followed by so many times as much
/** Longer than a tick takes: one that Cloudflare has ended keeps only the next from its work. */
const LOCK_SECONDS = 110;
/** A batch that is open, and in which nothing happens, is looked at so often. */
const QUIET_SECONDS = 600;

/** Returns what it did, for the log. */
export async function tick(env) {
  const cx = open(env);
  const heads = await readHeads(cx); // all batches, without their pages
  const queue = await cx.kv.list(queuePrefix(cx.project)); // the first thousand items
  const isEmpty = queue.keys.length === 0;
  // A project at rest costs these two listings.
  if (isEmpty && [...heads.values()].every(isFinal)) return { idle: true };
  const { isLocked, isQuiet, pass, sent } = await recall(cx);
  if (isLocked) return { busy: true };
  if (isEmpty && isQuiet) return { idle: true };
  // Only ticks that follow each other see this lock: of two at once neither does.
  await remember(cx, { until: Date.now() + 1000 * LOCK_SECONDS, sent });
  const next = { sent };
  try {
    return await work(cx, heads, queue, new Census(heads, pass), next);
  } finally {
    await remember(cx, next);
  }
}

/** The four steps. What the next tick is to know is put into `next`. */
async function work(cx, heads, queue, census, next) {
  const spent = () => cx.operations - cx.kv.left;
  await census.take(cx, queue, next.sent);

  // They may take half of the operations that are left.
  const most = Math.max(0, Math.floor(cx.kv.left / 2 / OPERATIONS_A_LAPSE));
  const isCancelled = (batch) => heads.get(batch)?.intent === "cancel";
  const lapsed = await takeUpLapsed(cx, census.lapsed.slice(0, most), isCancelled);
  if (census.cursor) {
    next.pass = census.rest; // the next tick goes on with the census
    return { ticks: census.ticks, lapsed, operations: spent() };
  }

  const wanted = itemsWanted(cx, census);
  const waiting = await itemsWaiting(cx, queue, census.missing, wanted);
  next.sent = stillInQueue(cx, next.sent, new Set(waiting));
  const items = waiting.slice(0, wanted).filter((item) => !next.sent.has(item));
  await send(cx, items, next.sent);

  const { snapshots, left } = await sumUp(cx, heads, census);
  // While anything is in the Queue, its page may be in hand already and not be seen to be.
  const isQuiet = !(census.lapsed.length + next.sent.size + snapshots + left + census.inFlight);
  if (isQuiet) next.quiet = Date.now() + 1000 * QUIET_SECONDS;
  return { sent: items.length, lapsed, snapshots, operations: spent() };
}

/**
 * How many items are to be in the Queue: some minutes' work, less what is in hand. A minute's work
 * is what ended in the last one, or at least as many pages as may be worked on at once.
 */
function itemsWanted(cx, { ticks, inFlight, endedLately }) {
  const ahead = MINUTES_AHEAD * Math.max(cx.concurrency, endedLately);
  const atMost = ITEMS_AN_OPERATION * cx.operations;
  return Math.max(0, Math.min(ticks, MAX_TICKS) * Math.min(ahead, atMost) - inFlight);
}

/** The missing items and, listed as far as `wanted` needs it, the others; in their order. */
async function itemsWaiting(cx, queue, missing, wanted) {
  const items = new Set(missing);
  let { keys, cursor } = queue;
  for (;;) {
    for (const { name } of keys) items.add(name);
    if (!cursor || items.size >= missing.length + wanted) return [...items].sort();
    ({ keys, cursor } = await cx.kv.list(queuePrefix(cx.project), cursor));
  }
}

/**
 * Of `sent`, by key and time, what is still in the Queue. An item that waits has not been claimed:
 * after a lease its message counts as lost. One that waits no longer has been claimed, and is kept
 * until every listing shows the claim.
 */
function stillInQueue({ lagSeconds, leaseSeconds }, sent, waiting) {
  const isStill = ([item, at]) => {
    const seconds = waiting.has(item) ? leaseSeconds : 3 * lagSeconds;
    return isAhead(at + 1000 * seconds, seconds);
  };
  return new Map([...sent].filter(isStill));
}

/**
 * Send items to the consumer, each with a token to claim its page with. They are added to `sent` as
 * the Queue takes them: where it refuses the rest, this throws, and those are not sent again.
 */
async function send({ env, kv }, items, sent) {
  const message = (item) => ({ body: { item, claim: crypto.randomUUID() }, contentType: "json" });
  for (let at = 0; at < items.length; at += MESSAGES_A_SEND) {
    const some = items.slice(at, at + MESSAGES_A_SEND);
    kv.left -= 1; // the free plan counts it with the operations on KV
    await env.PAGES.sendBatch(some.map(message));
    for (const item of some) sent.set(item, Date.now());
  }
}

// --- what a tick leaves for the next one: a record in KV ---

const memoryKey = (project) => `cloud:${project}:tick`;

/**
 * `sent`: what is in the Queue, by key, and since when; `pass`: a census that is not at its end;
 * `until` when the tick at work counts as such; `quiet`: until when there is nothing to do.
 */
const remember = ({ kv, project }, { sent, ...memory }) =>
  kv.put(memoryKey(project), { ...memory, sent: Object.fromEntries(sent) });

async function recall({ kv, project }) {
  const { until, quiet, pass, sent } = object(await kv.get(memoryKey(project)));
  return {
    isLocked: isAhead(until, LOCK_SECONDS),
    isQuiet: isAhead(quiet, QUIET_SECONDS),
    pass,
    sent: new Map(Object.entries(object(sent))),
  };
}

/** Whether a time is to come, within so many seconds: one further off is of a clock gone wrong. */
const isAhead = (end, seconds) => number(end) > Date.now() && end <= Date.now() + 1000 * seconds;
