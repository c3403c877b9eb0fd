/**
 * A tick of the cron trigger: the one coordinator of the project.
 *
 * It looks at all that waits and all that is in hand, claims in the order of the queue as much as
 * the consumers do in about two minutes, mends what has come to a stop, and brings the batch records
 * up to date. An invocation may do 1,000 operations on KV. A claim costs two (status written, item
 * removed), so a tick claims some 450 pages itself; what is to be claimed beyond that it hands to
 * the consumer in groups of keys, each claimed with an invocation's operations of its own. Mending
 * and snapshots that no operation is left for wait for the next tick.
 *
 * Two ticks at once (KV has no locks) do no harm: the later claim of a page is the one that counts,
 * and the consumer drops the other.
 */

import { Tally, isFinal, readHeads, saveSnapshot } from "./batches.js";
import { claimItems, putInQueue, sendAll, takeUpLapsed } from "./claims.js";
import { Kv, OutOfOperations, isObject, iso } from "./kv.js";
import { STATES, asQueued, hasLapsed, lastPart, queueKey, small, statusKey } from "./records.js";
import { settings as read } from "./settings.js";

const OPERATIONS_A_CLAIM = 2.02; // status, item, and a hundredth of a bulk read
const OPERATIONS_A_MEND = 4.02; // status, item, log read and written
const MAX_WANTED = 5000; // claimed in one tick, at most
const LOCK_SECONDS = 300;
/** So much is left for snapshots, and for what the last claims may need again. */
const SPARE = 0.05;

/**
 * @param {import("./settings.js").Env} env
 * @returns {Promise<object>}  what it did, for the log
 */
export async function tick(env) {
  const settings = read(env);
  const { project, lagSeconds } = settings;
  const kv = new Kv(env.KV, settings.operations);
  const heads = await readHeads(kv, project);
  const queue = await kv.list(`queue:${project}:`);
  // A project at rest costs two listings a tick.
  if (!queue.keys.length && [...heads.values()].every(isFinal)) return { idle: true };
  const memory = await begin(kv, project, lagSeconds);
  if (memory === null) return { busy: true };
  try {
    return await work(env, settings, kv, heads, queue, memory);
  } catch (error) {
    if (!(error instanceof OutOfOperations)) throw error;
    return { out_of_operations: error.message };
  } finally {
    await kv.put(memoryKey(project), { handed: memory });
  }
}

/**
 * @param {import("./settings.js").Env} env
 * @param {ReturnType<typeof read>} settings
 * @param {Kv} kv
 * @param {Awaited<ReturnType<typeof readHeads>>} heads
 * @param {Awaited<ReturnType<Kv["list"]>>} queue  its first thousand items
 * @param {Record<string, number>} memory
 */
async function work(env, settings, kv, heads, queue, memory) {
  const { project, lagSeconds, operations } = settings;
  const spare = Math.ceil(operations * SPARE);
  const room = (/** @type {number} */ cost) => Math.max(0, Math.floor((kv.left - spare) / cost));
  const cancelled = new Set(
    [...heads.values()].filter((head) => head.intent === "cancel").map((head) => head.id),
  );
  const census = await takeCensus(kv, project, !queue.cursor);

  const lapsed = await takeUpLapsed(
    kv,
    project,
    census.lapsed.slice(0, room(OPERATIONS_A_MEND)),
    cancelled,
  );
  // Only where all of the queue was seen can a page be missing from it.
  const lost = queue.cursor ? [] : missing(project, census.queued, queue.keys, memory, lagSeconds);
  const queuedAgain = await queueLost(kv, project, lost.slice(0, room(OPERATIONS_A_MEND)));

  // What is done in two minutes, and at the beginning what is worked on at once and as much again:
  // a claim that waits in the queue for longer than its lease would be taken up twice.
  const wanted =
    Math.min(MAX_WANTED, Math.max(2 * settings.concurrency, 2 * census.endedLately)) -
    census.inFlight;
  const items = await firstItems(kv, project, queue, wanted, memory);
  const ours = items.slice(0, room(OPERATIONS_A_CLAIM));
  const claimed = await claimItems(kv, env, settings, ours, cancelled);
  // An invocation of the consumer may have several groups, and their claims share its operations.
  const share = Math.floor(operations / settings.batchSize) - 4;
  const size = Math.max(1, Math.floor(share / OPERATIONS_A_CLAIM));
  const groups = [];
  for (let at = ours.length; at < items.length; at += size)
    groups.push({ claim: items.slice(at, at + size) });
  await sendAll(env.PAGES, groups);
  for (const item of items) memory[shortKey(project, item)] = Date.now();

  for (const [page, status] of claimed) census.tallies.get(status.batch_id)?.add(page, status);
  let snapshots = 0;
  for (const head of heads.values()) {
    const tally = census.tallies.get(head.id);
    const atWork =
      tally &&
      [...tally.states.values()].some((state) =>
        ["uploaded", "queued", "processing"].includes(state),
      );
    if (!tally || (isFinal(head) && !atWork) || kv.left < 3) continue;
    await addSuperseded(kv, project, head, tally);
    snapshots += Number(await saveSnapshot(kv, project, head, tally, lagSeconds));
  }
  const handed = items.length - ours.length;
  return {
    claimed: claimed.size,
    handed,
    lapsed: lapsed.length,
    queued_again: queuedAgain,
    snapshots,
    operations: operations - kv.left,
  };
}

/**
 * All pages of the project, by one listing of their small statuses.
 * @param {Kv} kv
 * @param {string} project
 * @param {boolean} withQueued  keep the places of queued pages: there are few
 */
async function takeCensus(kv, project, withQueued) {
  const now = iso();
  const lately = iso(Date.now() - 60_000);
  const census = {
    /** @type {Map<string, Tally>} */
    tallies: new Map(),
    /** @type {string[]} */
    lapsed: [],
    /** @type {Map<string, any>} */
    queued: new Map(),
    inFlight: 0,
    endedLately: 0,
  };
  /** @type {string[]} */
  const bare = [];
  const add = (/** @type {string} */ page, /** @type {any} */ status) => {
    const tally = census.tallies.get(status.batch_id) ?? new Tally();
    census.tallies.set(status.batch_id, tally);
    tally.add(page, status);
    if (hasLapsed(status, now)) census.lapsed.push(page);
    else if (status.status === "processing") census.inFlight += 1;
    else if (String(status.completed) > lately && status.completed) census.endedLately += 1;
    else if (withQueued && status.status === "queued") census.queued.set(page, status);
  };
  for await (const { name, metadata } of kv.scan(statusKey(project, ""))) {
    if (STATES.includes(metadata?.status) && metadata.batch_id) add(lastPart(name), metadata);
    else bare.push(name); // its writer, the seed's, gave none
  }
  for (const [name, status] of await kv.getMany(bare))
    if (isObject(status)) add(lastPart(name), small(status));
  return census;
}

/**
 * The keys of the first items, but those that were handed out while reads may still show them.
 * @param {Kv} kv
 * @param {string} project
 * @param {Awaited<ReturnType<Kv["list"]>>} queue
 * @param {number} wanted
 * @param {Record<string, number>} memory
 */
async function firstItems(kv, project, queue, wanted, memory) {
  const items = [];
  for (let page = queue; ; page = await kv.list(`queue:${project}:`, page.cursor)) {
    for (const { name } of page.keys) {
      if (items.length >= wanted) return items;
      if (!(shortKey(project, name) in memory)) items.push(name);
    }
    if (!page.cursor) return items;
  }
}

/**
 * Queued pages that are in no queue: nobody would ever claim them.
 * @param {string} project
 * @param {Map<string, any>} queued  small statuses by page id
 * @param {{name: string}[]} items
 * @param {Record<string, number>} memory
 * @param {number} lagSeconds
 */
function missing(project, queued, items, memory, lagSeconds) {
  const keys = new Set(items.map((item) => item.name));
  const pages = new Set(items.map((item) => lastPart(item.name)));
  const before = iso(Date.now() - lagSeconds * 1000);
  return [...queued].flatMap(([page, status]) => {
    const key = queueKey(project, page, status);
    const isThere =
      key === null ? pages.has(page) : keys.has(key) || shortKey(project, key) in memory;
    // The item of a page that was queued just now may not be seen yet.
    return isThere || (lagSeconds > 0 && status.updated > before) ? [] : [page];
  });
}

/** @param {Kv} kv @param {string} project @param {string[]} pages */
async function queueLost(kv, project, pages) {
  const statuses = [...(await kv.getMany(pages.map((page) => statusKey(project, page))))];
  const queued = statuses.filter(([, status]) => isObject(status) && status.status === "queued");
  await kv.all(queued, ([key, status]) => putInQueue(kv, project, lastPart(key), asQueued(status)));
  return queued.length;
}

/**
 * Pages that a later batch took over, as they were then.
 * @param {Kv} kv
 * @param {string} project
 * @param {import("./batches.js").Head} head
 * @param {Tally} tally
 */
async function addSuperseded(kv, project, head, tally) {
  if (tally.states.size >= head.pageCount) return;
  for await (const { name, metadata } of kv.scan(`superseded:${project}:${head.id}:`)) {
    const page = lastPart(name);
    if (!tally.states.has(page))
      tally.add(page, metadata?.status ? metadata : small(/** @type {any} */ (await kv.get(name))));
  }
}

/**
 * Begin a tick, unless another is at it: what was handed out lately, by key, and when.
 *
 * It is a record and no lock: KV may show it too late. It keeps ticks apart that follow each other
 * by a minute; those that meet do no harm.
 * @param {Kv} kv
 * @param {string} project
 * @param {number} lagSeconds
 * @returns {Promise<Record<string, number> | null>}
 */
async function begin(kv, project, lagSeconds) {
  const found = await kv.get(memoryKey(project));
  const record = isObject(found) ? found : {};
  if (record.until > Date.now()) return null;
  const since = Date.now() - 3000 * lagSeconds;
  const handed = Object.fromEntries(
    Object.entries(record.handed ?? {}).filter(([, at]) => at > since),
  );
  await kv.put(memoryKey(project), { until: Date.now() + 1000 * LOCK_SECONDS, handed });
  return handed;
}

const memoryKey = (/** @type {string} */ project) => `cloud:${project}:tick`;
const shortKey = (/** @type {string} */ project, /** @type {string} */ key) =>
  key.slice(`queue:${project}:`.length);
