/**
 * A tick of the cron trigger: the one coordinator of the project.
 *
 * It looks at all pages (census.js), takes up claims that have lapsed, sends to the Queue as many
 * items, in their order, as the consumers do in some minutes, and brings the batch records up to
 * date. An invocation may do 1,000 operations on KV, and has 128 MB: what no operation is left for
 * waits for the next tick.
 *
 * Two ticks at once (KV has no locks) lose nothing: of two messages for an item the first claims
 * the page, and the other is let go. Where reads lag, a page may then be worked on twice.
 */

import { isFinal, readHeads, saveSnapshot } from "./batches.js";
import { Census } from "./census.js";
import { open } from "./context.js";
import { STATES, idUnder, number, object, queuePrefix } from "./fields.js";
import { unlessRefused } from "./kv.js";
import { takeUpLapsed } from "./pages.js";

const OPERATIONS_A_LAPSE = 5; // status, item, log, and two reads
const OPERATIONS_A_SNAPSHOT = 6; // pages taken over, record, listing, record, and what is kept
const MESSAGES_A_SEND = 100; // of 1 KB at most
const ITEMS_AN_OPERATION = 5; // that are in the Queue at most: 5,000, with 1,000 operations
/** So many ticks' worth is sent at once where the census takes several. */
const MAX_TICKS = 4;
/**
 * So much is in the Queue: until the next tick, a minute that listings may lag, and one more. What is
 * done in a minute is what was in the last one, or a page for each that may be worked on at once.
 */
const MINUTES_AHEAD = 3;
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
  const queue = await cx.kv.list(queuePrefix(cx.project)); // its first thousand items
  // A project at rest costs two listings a tick.
  if (!queue.keys.length && [...heads.values()].every(isFinal)) return { idle: true };
  const { isLocked, isQuiet, pass, sent } = await recall(cx);
  if (isLocked) return { busy: true };
  if (!queue.keys.length && isQuiet) return { idle: true };
  // A record and no lock: KV may show it too late. It keeps ticks apart that follow each other.
  await remember(cx, { until: Date.now() + 1000 * LOCK_SECONDS, sent });
  const next = { sent };
  try {
    return await work(cx, heads, queue, new Census(heads, pass), next);
  } finally {
    await remember(cx, next);
  }
}

/** `census` may have begun in a tick before; `next` is what the next tick is to know. */
async function work(cx, heads, queue, census, next) {
  const operations = () => cx.operations - cx.kv.left;
  await census.take(cx, queue, next.sent);
  const most = Math.max(0, Math.floor(cx.kv.left / 2 / OPERATIONS_A_LAPSE));
  const isCancelled = (batch) => heads.get(batch)?.intent === "cancel";
  const lapsed = await takeUpLapsed(cx, census.lapsed.slice(0, most), isCancelled);
  if (census.cursor) {
    next.pass = census.rest;
    return { ticks: census.ticks, lapsed, operations: operations() };
  }

  const first = await firstItems(cx, queue, census);
  next.sent = stillSent(cx, next.sent, first);
  const items = first.filter((item) => !next.sent.has(item));
  await send(cx, items, next.sent);

  const { snapshots, left } = await sumUp(cx, heads, census);
  // Of what was sent, a page may be in hand by now, and not be seen to be.
  const isQuiet = !(lapsed + next.sent.size + snapshots + left + census.inFlight);
  if (isQuiet) next.quiet = Date.now() + 1000 * QUIET_SECONDS;
  return { sent: items.length, lapsed, snapshots, operations: operations() };
}

/** The keys of the items that are to be in the Queue: the first, with those that are missing. */
async function firstItems(cx, queue, { ticks, inFlight, endedLately, missing }) {
  const wanted = MINUTES_AHEAD * Math.max(cx.concurrency, endedLately);
  const ahead = Math.min(ITEMS_AN_OPERATION * cx.operations, wanted);
  const most = Math.max(0, Math.min(MAX_TICKS, ticks) * ahead - inFlight);
  const items = [...missing];
  let { keys, cursor } = queue;
  for (;;) {
    for (const { name } of keys) items.push(name);
    if (!cursor || items.length >= missing.length + most) break;
    ({ keys, cursor } = await cx.kv.list(queuePrefix(cx.project), cursor));
  }
  return items.sort().slice(0, most);
}

/**
 * Of what was sent, that which waits still, or was claimed so lately that a listing may show it. A
 * message that came to nothing for a whole lease is lost.
 */
function stillSent({ lagSeconds, leaseSeconds }, sent, first) {
  const listed = new Set(first);
  const seconds = (item) => (listed.has(item) ? leaseSeconds : 3 * lagSeconds);
  return new Map([...sent].filter(([item, at]) => lasts(at + 1000 * seconds(item), seconds(item))));
}

/**
 * Send items to the consumer, each with a token to claim its page with. What the Queue has taken is
 * put into `sent`, also where it refuses the rest.
 */
async function send({ env, kv }, items, sent) {
  const message = (item) => ({ body: { item, claim: crypto.randomUUID() }, contentType: "json" });
  for (let at = 0; at < items.length; at += MESSAGES_A_SEND) {
    const some = items.slice(at, at + MESSAGES_A_SEND);
    kv.left -= 1; // on the free plan they count together
    await env.PAGES.sendBatch(some.map(message));
    for (const item of some) sent.set(item, Date.now());
  }
}

/** Bring batch records up to date: how many were written, and how many are left for later. */
async function sumUp(cx, heads, { tallies, waiting }) {
  const done = { written: 0, later: 0, "as it is": 0 };
  for (const head of heads.values()) {
    const tally = tallies.get(head.id);
    if (!tally || (isFinal(head) && !tally.isOpen)) continue;
    const mayBe = !waiting.has(head.id) && cx.kv.left >= OPERATIONS_A_SNAPSHOT;
    if (mayBe) await addSuperseded(cx, head, tally);
    const save = () => (mayBe ? saveSnapshot(cx, head, tally) : "later");
    done[(await unlessRefused(save)) ?? "as it is"] += 1;
  }
  return { snapshots: done.written, left: done.later };
}

/** Pages that a later batch took over, as they were then. */
async function addSuperseded({ kv, project }, head, tally) {
  if (tally.seen >= head.page_count) return;
  const prefix = `superseded:${project}:${head.id}:`;
  for await (const { name, metadata } of kv.scan(prefix)) {
    const page = idUnder(prefix, name);
    if (page && tally.seen < head.page_count && STATES.includes(metadata?.status))
      tally.add(page, metadata);
  }
}

/**
 * What the tick before has left: what is in the Queue, by key, and since when; its census, if that
 * is not at its end; whether a tick is at work, or there was nothing to do.
 */
async function recall({ kv, project }) {
  const { until, quiet, pass, sent } = object(await kv.get(memoryKey(project)));
  return {
    isLocked: lasts(until, LOCK_SECONDS),
    isQuiet: lasts(quiet, QUIET_SECONDS),
    pass,
    sent: new Map(Object.entries(object(sent))),
  };
}

/** Whether it is before `end`, and that no further off than it can be by a clock that is right. */
const lasts = (end, seconds) => number(end) > Date.now() && end <= Date.now() + 1000 * seconds;

const memoryKey = (project) => `cloud:${project}:tick`;
const remember = ({ kv, project }, { sent, ...memory }) =>
  kv.put(memoryKey(project), { ...memory, sent: Object.fromEntries(sent) });
