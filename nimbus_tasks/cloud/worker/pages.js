/**
 * Pages in KV: claiming them, taking up claims that have lapsed, writing their status and log. What
 * nimbus_tasks/core/claims.py does in Python.
 */

import { isObject, iso, toJson } from "./kv.js";
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
 * `items` are keys; `isCancelled` is asked of batch ids. Returns the statuses that were written, by
 * page id, and the items that are done with.
 */
export async function claimItems(cx, items, isCancelled) {
  const { kv, project, lagSeconds } = cx;
  const pages = new Map(items.map((item) => [item, idOf(item)]));
  const keys = [...pages.values()].filter(Boolean).map((page) => statusKey(project, page));
  const statuses = await kv.getMany([...new Set(keys)]);
  const [fresh, soon] = [iso(Date.now() - 1000 * lagSeconds), iso(Date.now() + CLOCK_SKEW_MS)];
  const [used, before, written] = [[], new Map(), new Map()];
  for (const [item, page] of pages) {
    const status = page && statuses.get(statusKey(project, page));
    if (!isMeant(item, status, project, page)) {
      // Where reads lag, an item may be seen before its page's status: it is left for later.
      const maySeeMore = page && lagSeconds && isNewer(item, fresh) && !isNewer(item, soon);
      const isOlder = !isObject(status) || isNewer(item, String(status.updated));
      if (!(maySeeMore && isOlder)) used.push(item);
      continue;
    }
    used.push(item);
    if (written.has(page)) continue;
    before.set(page, status);
    const isOver = await isCancelled(status.batch_id);
    written.set(page, isOver ? asCancelled(status) : asClaimed(status, newClaim(cx)));
  }
  await kv.all(written, ([page, status]) => putStatus(cx, page, status));
  const claims = [...written].filter(([, status]) => status.status === "processing");
  try {
    await sendAll(cx, claims.map(jobOf));
  } catch (error) {
    // Nothing was lost: the items are there still, and the pages are as if never claimed. One that
    // was sent all the same finds that its claim is over.
    await kv.all(claims, ([page]) => putStatus(cx, page, { ...before.get(page), updated: iso() }));
    throw error;
  }
  await kv.all(used, (item) => kv.delete(item));
  return { written, used };
}

/**
 * Whether it is this item by which the page is to be claimed. A writer that does not know our place
 * in the record names none: any item is its own.
 */
function isMeant(item, status, project, page) {
  if (!page || !isObject(status) || status.status !== "queued" || !id(status.batch_id))
    return false;
  return [null, item].includes(
    queueKey(project, page, isObject(status.queued) ? status.queued : {}),
  );
}

function newClaim({ leaseSeconds }) {
  const now = Date.now();
  const claim = crypto.randomUUID().replaceAll("-", "").slice(0, 16);
  return { claim, claimed: iso(now), lease: iso(now + 1000 * leaseSeconds) };
}

/** The message of a claimed page, of its id and status. */
function jobOf([page, { batch_id, attempts, processing }]) {
  const { claim, started, lease } = processing;
  return { page_id: page, batch_id, attempt: attempts, claim, claimed: started, lease };
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
 */
export async function takeUpLapsed(cx, pages, isCancelled) {
  const statuses = await cx.kv.getMany(pages.map((page) => statusKey(cx.project, page)));
  const now = iso();
  const lapsed = pages
    .map((page) => [page, statuses.get(statusKey(cx.project, page))])
    .filter(([, status]) => isObject(status) && hasLapsed(small(status), now));
  await cx.kv.all(lapsed, async ([page, status]) => {
    const lapses = (count(status.lapses) ?? 0) + 1;
    const next = { ...status, lapses };
    if (lapses >= MAX_LAPSES)
      await putStatus(
        cx,
        page,
        asLost(next, `${MAX_LAPSES} workers vanished while they had this page`),
      );
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
  await cx.kv.put(statusKey(cx.project, page), status, small(status));
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
  await kv.put(key, text, { entries: entries.length });
}
