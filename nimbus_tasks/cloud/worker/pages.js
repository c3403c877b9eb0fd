/**
 * The writes to a page's records that ticks and the consumer make: claiming it, taking up a claim
 * that has lapsed, status, item and log. What nimbus_tasks/core/claims.py does in Python.
 *
 * The status is the truth, and is written before the item is written or deleted. Cut off between
 * the two, an item is left over, which the consumer deletes, or is missing, which a tick finds out.
 */

import { count, id, idOf, isEarly, logsKey, object, queueKey, statusKey } from "./fields.js";
import { isTooLarge, iso, toJson, unlessRefused } from "./kv.js";
import { asCancelled, asClaimed, asLost, asQueued } from "./records.js";
import { hasLapsed, ownFields, small } from "./records.js";

/** A page whose holders vanished this often is what makes them vanish: it fails. */
const MAX_LAPSES = 3;
const LOG_CHARACTERS = 6_000_000; // a value may have 25 MB, and a character four bytes

/**
 * Claim the page of a queue item, for the message that has this token. Returns `{job}`, also where
 * this message has claimed it before; `{isEarly}` where KV may not show yet why the item was made;
 * `{}` where there is nothing to do: the page is not queued, or its batch is cancelled.
 */
export async function claimPage(cx, { item, claim }, isCancelled) {
  const page = idOf(item);
  const status = object(page && (await cx.kv.get(statusKey(cx.project, page))));
  if (status.status === "processing" && status.processing?.claim === claim)
    return { job: jobOf(page, status) };
  if (!isQueuedAs(cx, item, page, status)) {
    if (page && isEarly(cx, item, status.updated)) return { isEarly: true };
    await cx.kv.delete(item);
    return {};
  }
  const isOff = await isCancelled(status.batch_id);
  const now = Date.now();
  const by = { claim, claimed: iso(now), lease: iso(now + 1000 * cx.leaseSeconds) };
  const next = isOff ? asCancelled(status) : asClaimed(status, by);
  await putStatus(cx, page, next);
  await cx.kv.delete(item);
  return isOff ? {} : { job: jobOf(page, next) };
}

function jobOf(page, { batch_id, uploaded, attempts, processing }) {
  const { claim, started, lease } = processing;
  return { page_id: page, batch_id, uploaded, attempt: attempts, claim, claimed: started, lease };
}

/**
 * Whether the page is queued, and by this item: a retry makes another one. The status of a writer
 * that knows no items does not say which: then any will do.
 */
function isQueuedAs({ project }, item, page, status) {
  if (status.status !== "queued" || !id(status.batch_id)) return false;
  return [null, item].includes(queueKey(project, page, object(status.queued)));
}

/** Take up the claims of these pages, if their records too say that they have lapsed; how many. */
export async function takeUpLapsed(cx, pages, isCancelled) {
  let taken = 0;
  for (const page of pages) {
    const status = object(await cx.kv.get(statusKey(cx.project, page)));
    if (!hasLapsed(small(status), iso())) continue;
    await unlessRefused(() => takeUp(cx, page, status, isCancelled(status.batch_id)));
    taken += 1;
  }
  return taken;
}

/** Its holder has vanished: queue the page again, or end it if that was so too often. */
async function takeUp(cx, page, status, isOff) {
  const lapses = (count(status.lapses) ?? 0) + 1;
  const next = { ...status, lapses };
  const lost = `${MAX_LAPSES} workers vanished while they had this page`;
  if (lapses >= MAX_LAPSES) await putStatus(cx, page, asLost(next, lost));
  else if (isOff) await putStatus(cx, page, asCancelled(next));
  else await putInQueue(cx, page, asQueued(next));
  const message = `The worker of attempt ${status.attempts} has not been heard of`;
  const data = { attempt: status.attempts, batch_id: status.batch_id, lapses };
  await addToLog(cx, page, [{ timestamp: iso(), level: "warning", step: "lease", message, data }]);
}

/** Write the status of a queued page, and its item. */
export async function putInQueue(cx, page, status) {
  await putStatus(cx, page, status);
  const whose = { page_id: page, batch_id: status.batch_id };
  const item = { ...whose, ...status.queued, attempts: count(status.attempts) ?? 0 };
  await cx.kv.put(queueKey(cx.project, page, status.queued), item, whose);
}

/** Write a status, with its small form as metadata: listings show that, and no value. */
export async function putStatus(cx, page, status) {
  const text = toJson(status);
  const value = isTooLarge(text) ? ownFields(status) : text;
  await cx.kv.put(statusKey(cx.project, page), value, small(status));
}

/** Add entries to a page's log. Where it grows too long the oldest go: the page has to end. */
export async function addToLog({ kv, project }, page, added) {
  const key = logsKey(project, page);
  const record = (await kv.get(key)) ?? { page_id: page };
  let entries = [...(Array.isArray(record.entries) ? record.entries : []), ...added];
  let text = toJson({ ...record, entries });
  while (text.length > LOG_CHARACTERS && entries.length > 1) {
    entries = entries.slice(entries.length >> 1);
    text = toJson({ ...record, entries });
  }
  // Still too long: what somebody else has put beside the entries has to go.
  if (text.length > LOG_CHARACTERS) text = toJson({ page_id: page, entries });
  await kv.put(key, text, { entries: entries.length });
}
