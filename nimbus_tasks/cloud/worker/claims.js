/**
 * Claiming queued pages and sending them to the consumer; taking up claims that have lapsed.
 * What nimbus_tasks/core/claims.py does in Python.
 *
 * @typedef {import("./kv.js").Kv} Kv
 * @typedef {ReturnType<typeof import("./settings.js").settings>} Settings
 */

import { isObject, iso } from "./kv.js";
import { addToLog, logEntry } from "./logs.js";
import {
  MAX_LAPSES,
  asCancelled,
  asClaimed,
  asLost,
  asQueued,
  hasLapsed,
  id,
  isNewer,
  lastPart,
  queueItem,
  queueKey,
  small,
  statusKey,
} from "./records.js";

// What a Queue takes in one call. A message's size is counted as its JSON.
const MESSAGES_A_SEND = 100;
const BYTES_A_SEND = 200_000; // of 256 KB

/**
 * Claim the pages of those queue items, and send each as a message.
 *
 * The statuses are written first, then the messages sent, then the items removed: cut off anywhere,
 * a page is in the queue still or has a lease that lapses. Queued pages of a cancelled batch become
 * cancelled; items that no queued page stands behind are removed.
 * @param {Kv} kv
 * @param {import("./settings.js").Env} env
 * @param {Settings} settings
 * @param {string[]} items  keys
 * @param {Set<string>} cancelled  ids of batches for which a cancel was asked
 * @returns {Promise<Map<string, any>>}  what was written, by page id
 */
export async function claimItems(kv, env, settings, items, cancelled) {
  const { project, lagSeconds, leaseSeconds } = settings;
  const statuses = await kv.getMany(items.map((item) => statusKey(project, lastPart(item))));
  const fresh = iso(Date.now() - lagSeconds * 1000);
  const used = [];
  const before = new Map();
  const after = new Map();
  for (const item of items) {
    const page = lastPart(item);
    let status = statuses.get(statusKey(project, page));
    // Where reads lag, an item may be seen before its page's status: it is left for later.
    const maySeeMore = lagSeconds > 0 && isNewer(item, fresh);
    if (!isObject(status) || !isMeant(item, status, project, page)) {
      const older = !isObject(status) || isNewer(item, String(status.updated));
      if (!(maySeeMore && older)) used.push(item);
      continue;
    }
    if (after.has(page)) continue;
    used.push(item);
    before.set(page, status);
    if (cancelled.has(status.batch_id)) after.set(page, asCancelled(status));
    else after.set(page, asClaimed(status, newClaim(leaseSeconds)));
  }
  await write(kv, project, after);
  const claims = [...after].filter(([, status]) => status.status === "processing");
  try {
    await sendAll(
      env.PAGES,
      claims.map(([page, status]) => jobOf(page, status)),
    );
  } catch (error) {
    // Nothing was lost: the items are there still, and the pages are as if never claimed. One that
    // was sent all the same finds that its claim is over.
    await write(
      kv,
      project,
      new Map(claims.map(([page]) => [page, { ...before.get(page), updated: iso() }])),
    );
    throw error;
  }
  await kv.all(used, (item) => kv.delete(item));
  return after;
}

/**
 * Send messages in as few calls as a Queue allows.
 * @param {Queue} queue
 * @param {object[]} bodies
 */
export async function sendAll(queue, bodies) {
  /** @type {{body: object, contentType: "json"}[]} */
  let batch = [];
  let bytes = 0;
  for (const body of bodies) {
    const size = JSON.stringify(body).length + 100;
    if (batch.length && (batch.length === MESSAGES_A_SEND || bytes + size > BYTES_A_SEND)) {
      await queue.sendBatch(batch);
      [batch, bytes] = [[], 0];
    }
    batch.push({ body, contentType: "json" });
    bytes += size;
  }
  if (batch.length) await queue.sendBatch(batch);
}

/**
 * Queue pages again whose claim has lapsed, if it still has; fail those that have lapsed too often.
 * @param {Kv} kv
 * @param {string} project
 * @param {string[]} pages
 * @param {Set<string>} cancelled
 */
export async function takeUpLapsed(kv, project, pages, cancelled) {
  const statuses = await kv.getMany(pages.map((page) => statusKey(project, page)));
  const now = iso();
  /** @type {[string, any][]} */
  const lapsed = pages
    .map((page) => /** @type {[string, any]} */ ([page, statuses.get(statusKey(project, page))]))
    .filter(([, status]) => isObject(status) && hasLapsed(small(status), now));
  await kv.all(lapsed, async ([page, status]) => {
    const lapses = (status.lapses ?? 0) + 1;
    const next = { ...status, lapses };
    if (lapses >= MAX_LAPSES) {
      await putStatus(
        kv,
        project,
        page,
        asLost(next, `${MAX_LAPSES} workers vanished while they had this page`),
      );
    } else if (cancelled.has(status.batch_id)) {
      await putStatus(kv, project, page, asCancelled(next));
    } else {
      await putInQueue(kv, project, page, asQueued(next));
    }
    const message = `The worker of attempt ${status.attempts} has not been heard of`;
    const data = { attempt: status.attempts, batch_id: status.batch_id, lapses };
    await addToLog(kv, project, page, [logEntry("lease", message, { level: "warning", data })]);
  });
  return lapsed.map(([page]) => page);
}

/**
 * Write a queued page's status, and its item.
 * @param {Kv} kv
 * @param {string} project
 * @param {string} page
 * @param {any} status
 */
export async function putInQueue(kv, project, page, status) {
  await putStatus(kv, project, page, status);
  const item = queueItem(project, page, status);
  if (item.key) await kv.put(item.key, item.value, item.metadata);
}

/**
 * @param {Kv} kv
 * @param {string} project
 * @param {string} page
 * @param {any} status
 */
export async function putStatus(kv, project, page, status) {
  await kv.put(statusKey(project, page), status, small(status));
}

/** @param {number} leaseSeconds */
function newClaim(leaseSeconds) {
  const now = Date.now();
  const claim = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) =>
    byte.toString(16).padStart(2, "0"),
  ).join("");
  return { claim, claimed: iso(now), lease: iso(now + leaseSeconds * 1000) };
}

/** @param {string} page @param {any} status @returns {import("./records.js").Job} */
function jobOf(page, status) {
  const { claim, started, lease } = status.processing;
  return {
    page_id: page,
    batch_id: status.batch_id,
    attempt: status.attempts,
    claim,
    claimed: started,
    lease,
  };
}

/**
 * Whether it is this item by which the page is to be claimed. A writer that does not know our place
 * in the record names none: any item is its own.
 * @param {string} item
 * @param {any} status
 * @param {string} project
 * @param {string} page
 */
function isMeant(item, status, project, page) {
  if (status.status !== "queued" || id(status.batch_id) === undefined) return false;
  return [null, item].includes(queueKey(project, page, status.queued ?? {}));
}

/** @param {Kv} kv @param {string} project @param {Map<string, any>} statuses */
async function write(kv, project, statuses) {
  await kv.all([...statuses], ([page, status]) => putStatus(kv, project, page, status));
}
