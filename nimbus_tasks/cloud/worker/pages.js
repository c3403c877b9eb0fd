/**
 * Pages in KV: claiming them, taking up claims that have lapsed, writing their status and log. What
 * nimbus_tasks/core/claims.py does in Python.
 */

import { isObject, isTooLarge, iso, toJson } from "./kv.js";
import {
  CLOCK_SKEW_MS,
  asCancelled,
  asClaimed,
  asLost,
  asQueued,
  count,
  hasLapsed,
  id,
  idOf,
  isNewer,
  logsKey,
  object,
  ownFields,
  queueItem,
  queueKey,
  small,
  statusKey,
} from "./records.js";

/** A page whose holders vanished this often is what makes them vanish: it fails. */
const MAX_LAPSES = 3;
// What a Queue takes in one call. A message's size is counted as its JSON.
export const MESSAGES_A_SEND = 100;
const BYTES_A_SEND = 200_000; // of 256 KB
const LOG_CHARACTERS = 6_000_000; // a value may have 25 MB, and a character four bytes

/**
 * Claim the pages of those queue items, and send each as a message.
 *
 * The statuses are written first, then the messages sent, then the items removed: cut off anywhere,
 * a page is in the queue still or has a lease that lapses. Queued pages of a cancelled batch become
 * cancelled; items that no queued page stands behind are removed.
 *
 * `items` are keys; `isCancelled` is asked of batch ids. Returns how many pages were claimed, and
 * the items that are done with.
 */
export async function claimItems(cx, items, isCancelled) {
  const { pages, used } = await pagesBehind(cx, items);
  const [claims, cancelled] = [[], []];
  for (const [page, status] of pages)
    if (await isCancelled(status.batch_id)) cancelled.push(page);
    else claims.push(claimOf(cx, page, status));
  await cx.kv.all(cancelled, (page) => putStatus(cx, page, asCancelled(pages.get(page))));
  const refused = await cx.kv.all(claims, (one) => putStatus(cx, one.job.page_id, one.claimed));
  const made = claims.filter((claim) => !refused.has(claim));
  try {
    await sendAll(cx, made.map(({ job }) => job));
  } catch (error) {
    // Nothing was lost: the items are there still, and the pages are as if never claimed. One that
    // was sent all the same finds that its claim is over.
    const back = ({ job, before }) => putStatus(cx, job.page_id, { ...before, updated: iso() });
    await cx.kv.all(made, back);
    throw error;
  }
  const waiting = new Set([...refused].map(({ job }) => job.page_id));
  const over = used.filter((item) => !waiting.has(idOf(item)));
  await cx.kv.all(over, (item) => cx.kv.delete(item));
  return { claimed: made.length, used: over };
}

/** The queued pages behind those items, statuses by id, and the items that are done with then. */
async function pagesBehind(cx, items) {
  const keyOf = (item) => statusKey(cx.project, idOf(item));
  const keys = new Set(items.filter(idOf).map(keyOf));
  const statuses = await cx.kv.getMany([...keys]);
  const [pages, used] = [new Map(), []];
  for (const item of items) {
    const [page, status] = [idOf(item), statuses.get(keyOf(item))];
    if (page && isMeant(cx, item, page, status)) pages.set(page, status);
    else if (page && mayBeEarly(cx, item, status)) continue; // it is left for later
    used.push(item);
  }
  return { pages, used };
}

/**
 * Whether it is this item by which the page is to be claimed. A writer that does not know our place
 * in the record names none: any item is its own.
 */
function isMeant({ project }, item, page, status) {
  if (!isObject(status) || status.status !== "queued" || !id(status.batch_id)) return false;
  return [null, item].includes(queueKey(project, page, object(status.queued)));
}

/** Whether reads lag, and this item may be seen before its page's status is. */
function mayBeEarly({ lagSeconds }, item, status) {
  const [fresh, soon] = [-1000 * lagSeconds, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
  if (!lagSeconds || !isNewer(item, fresh) || isNewer(item, soon)) return false;
  return !isObject(status) || isNewer(item, String(status.updated));
}

/** A claim of a page: the message of it, and the status with it and without. */
function claimOf({ leaseSeconds }, page, before) {
  const now = Date.now();
  const claim = crypto.randomUUID().replaceAll("-", "").slice(0, 16);
  const by = { claim, claimed: iso(now), lease: iso(now + 1000 * leaseSeconds) };
  const claimed = asClaimed(before, by);
  const { batch_id, attempts } = claimed;
  return { job: { page_id: page, batch_id, attempt: attempts, ...by }, claimed, before };
}

/** Send messages in as few calls as a Queue allows. */
export async function sendAll({ env, kv }, bodies) {
  let [batch, bytes] = [[], 0];
  const send = async () => {
    kv.left -= 1; // on the free plan they count together
    await env.PAGES.sendBatch(batch);
    [batch, bytes] = [[], 0];
  };
  for (const body of bodies) {
    const size = JSON.stringify(body).length + 100;
    if (batch.length === MESSAGES_A_SEND || (bytes && bytes + size > BYTES_A_SEND)) await send();
    batch.push({ body, contentType: "json" });
    bytes += size;
  }
  if (batch.length) await send();
}

/**
 * Queue pages again whose claim has lapsed, if it still has; fail those that have lapsed too often.
 * Returns how many.
 */
export async function takeUpLapsed(cx, pages, isCancelled) {
  const keys = pages.map((page) => statusKey(cx.project, page));
  const now = iso();
  const lapsed = [...(await cx.kv.getMany(keys))].filter(
    ([, status]) => isObject(status) && hasLapsed(small(status), now),
  );
  await cx.kv.all(lapsed, async ([key, status]) => {
    const [page, lapses] = [idOf(key), (count(status.lapses) ?? 0) + 1];
    const next = { ...status, lapses };
    const lost = `${MAX_LAPSES} workers vanished while they had this page`;
    if (lapses >= MAX_LAPSES) await putStatus(cx, page, asLost(next, lost));
    else if (await isCancelled(status.batch_id)) await putStatus(cx, page, asCancelled(next));
    else await putInQueue(cx, page, asQueued(next));
    const message = `The worker of attempt ${status.attempts} has not been heard of`;
    const data = { attempt: status.attempts, batch_id: status.batch_id, lapses };
    await addToLog(cx, page, [logEntry("lease", message, { level: "warning", data })]);
  });
  return lapsed.length;
}

/** Write a queued page's status, and its item. */
export async function putInQueue(cx, page, status) {
  await putStatus(cx, page, status);
  const item = queueItem(cx.project, page, status);
  if (item.key) await cx.kv.put(item.key, item.value, item.metadata);
}

export async function putStatus(cx, page, status) {
  const text = toJson(status);
  const value = isTooLarge(text) ? ownFields(status) : text;
  await cx.kv.put(statusKey(cx.project, page), value, small(status));
}

export function logEntry(step, message, { level = "info", data } = {}) {
  const some = data && Object.keys(data).length ? { data } : {};
  return { timestamp: iso(), level, step, message, ...some };
}

/** Add entries at the end of a page's log. */
export async function addToLog({ kv, project }, page, added) {
  const key = logsKey(project, page);
  const found = await kv.get(key);
  const record = isObject(found) ? found : { page_id: page };
  let entries = [...(Array.isArray(record.entries) ? record.entries : []), ...added];
  let text = toJson({ ...record, entries });
  while (text.length > LOG_CHARACTERS && entries.length > 1) {
    entries = entries.slice(entries.length >> 1); // the oldest go: the page has to end
    text = toJson({ ...record, entries });
  }
  // What somebody else has put beside them leaves no room.
  if (text.length > LOG_CHARACTERS) text = toJson({ page_id: page, entries });
  await kv.put(key, text, { entries: entries.length });
}
