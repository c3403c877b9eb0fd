/**
 * Pages in KV: claiming one, taking up claims that have lapsed, writing status and log. What
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
  object,
  queueItem,
  queueKey,
  small,
  statusKey,
} from "./records.js";

/** A page whose holders vanished this often is what makes them vanish: it fails. */
const MAX_LAPSES = 3;
const LOG_CHARACTERS = 6_000_000; // a value may have 25 MB, and a character four bytes
/** KV may not show yet what the item was made for. */
export const LATER = "later";

/**
 * Claim the page of a queue item, for a message that is known by `claim`: its job, also where the
 * message has the page already; LATER; or nothing, where there is nothing to do. Pages of a
 * cancelled batch become cancelled; an item that no queued page stands behind is removed.
 *
 * The status is written first, then the item removed: cut off between, whoever meets the item next
 * removes it.
 */
export async function claimPage(cx, { item, claim }, isCancelled) {
  const page = idOf(item);
  const status = page && (await cx.kv.get(statusKey(cx.project, page)));
  if (isObject(status) && status.status === "processing" && status.processing?.claim === claim)
    return jobOf(page, status);
  if (!isMeant(cx, item, page, status)) {
    if (page && mayBeEarly(cx, item, status)) return LATER;
    return cx.kv.delete(item);
  }
  const isOff = await isCancelled(status.batch_id);
  const now = Date.now();
  const by = { claim, claimed: iso(now), lease: iso(now + 1000 * cx.leaseSeconds) };
  const next = isOff ? asCancelled(status) : asClaimed(status, by);
  await putStatus(cx, page, next);
  await cx.kv.delete(item);
  return isOff ? undefined : jobOf(page, next);
}

/** A claim, as all that comes after goes by it. */
function jobOf(page, { batch_id, attempts, processing }) {
  const { claim, started, lease } = processing;
  return { page_id: page, batch_id, attempt: attempts, claim, claimed: started, lease };
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
