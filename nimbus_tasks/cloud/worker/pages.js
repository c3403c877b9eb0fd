/**
 * Pages in KV: claiming one, taking up claims that have lapsed, writing status and log. What
 * nimbus_tasks/core/claims.py does in Python.
 */

import { count, id, idOf, isEarly, logsKey, object, queueKey, statusKey } from "./fields.js";
import { isTooLarge, iso, toJson, unlessRefused } from "./kv.js";
import {
  asCancelled,
  asClaimed,
  asLost,
  asQueued,
  hasLapsed,
  ownFields,
  small,
} from "./records.js";

/** A page whose holders vanished this often is what makes them vanish: it fails. */
const MAX_LAPSES = 3;
const LOG_CHARACTERS = 6_000_000; // a value may have 25 MB, and a character four bytes
/** KV may not show yet what the item was made for. */
export const LATER = "later";

/**
 * Claim the page of a queue item, for a message that is known by `claim`. Returns its job, also
 * where the message has the page already; LATER; or nothing, where there is nothing to do. Pages of
 * a cancelled batch become cancelled; an item that no queued page stands behind is removed. Cut off
 * between status and item, the item is such a one.
 */
export async function claimPage(cx, { item, claim }, isCancelled) {
  const page = idOf(item);
  const status = object(page && (await cx.kv.get(statusKey(cx.project, page))));
  if (status.status === "processing" && status.processing?.claim === claim)
    return jobOf(page, status);
  if (!isMeant(cx, item, page, status)) {
    if (page && isEarly(cx, item, status.updated)) return LATER;
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
  if (status.status !== "queued" || !id(status.batch_id)) return false;
  return [null, item].includes(queueKey(project, page, object(status.queued)));
}

/** Take up those of the pages whose claim has lapsed, if it still has; how many they are. */
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

/** Queue a page again whose claim has lapsed, or fail it where that was so too often. */
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

/** Write the status of a page that was made a queued one, and its item. */
export async function putInQueue(cx, page, status) {
  await putStatus(cx, page, status);
  const whose = { page_id: page, batch_id: status.batch_id };
  const item = { ...whose, ...status.queued, attempts: count(status.attempts) ?? 0 };
  await cx.kv.put(queueKey(cx.project, page, status.queued), item, whose);
}

export async function putStatus(cx, page, status) {
  const text = toJson(status);
  const value = isTooLarge(text) ? ownFields(status) : text;
  await cx.kv.put(statusKey(cx.project, page), value, small(status));
}

/** Add entries at the end of a page's log: `{timestamp, level, step, message, data}`. */
export async function addToLog({ kv, project }, page, added) {
  const key = logsKey(project, page);
  const record = (await kv.get(key)) ?? { page_id: page };
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
