/**
 * Batches: what their pages add up to, and the snapshot of it in the batch record. What
 * lifecycle.py and batch_records.py of nimbus_tasks/core have in Python.
 *
 * A head is a batch record without its pages: `{id, status, intent, pageCount, counts}`, of which
 * the intent is what was last asked for the batch, and all else the snapshot of whoever wrote it.
 */

import { isObject, iso } from "./kv.js";
import {
  ENDED,
  STATES,
  batchKey,
  clip,
  count,
  idUnder,
  known,
  object,
  text,
  time,
} from "./records.js";

const FINAL = ["completed", "partially_completed", "failed", "cancelled"];
const INTENTS = ["upload", "run", "retry", "cancel"];
const INTENT_OF_STATUS = new Map([
  ["uploading", "upload"],
  ["retrying", "retry"],
  ["cancelling", "cancel"],
  ["cancelled", "cancel"],
]);
const REASON_BYTES = 260;
/** Of so many pages a tick has the states at hand, and their record: half of its 128 MB. */
export const PAGES_HELD = 100_000;
/** Records of writers that leave no metadata are read whole; older ones than these are not. */
const FOREIGN_READ = 20;

/** Whether nothing changes the batch unasked. */
export const isFinal = (head) => FINAL.includes(head.status);

/** The heads of the project's batches, by id. */
export async function readHeads({ kv, project }) {
  const heads = new Map();
  const foreign = [];
  const prefix = batchKey(project, "");
  for await (const { name, metadata } of kv.scan(prefix)) {
    const batch = idUnder(prefix, name);
    if (batch === undefined) continue;
    if (isOurs(metadata)) heads.set(batch, headOf(batch, metadata));
    else foreign.push(batch);
  }
  for (const batch of foreign.slice(-FOREIGN_READ))
    heads.set(batch, headOf(batch, await kv.get(batchKey(project, batch))));
  return heads;
}

/** Whether a cancel has been asked for a batch. */
export const isCancelled = async (cx, batch) => (await readHead(cx, batch))?.intent === "cancel";

/** The head of a batch as it is now; it costs a listing, since the record may have 25 MB. */
async function readHead({ kv, project }, batch) {
  const key = batchKey(project, batch);
  const found = (await kv.list(key)).keys.find(({ name }) => name === key);
  return found && headOf(batch, isOurs(found.metadata) ? found.metadata : await kv.get(key));
}

const isOurs = (metadata) =>
  INTENTS.includes(metadata?.intent) && count(metadata.page_count) !== undefined;

/** A head from metadata of ours, or from the whole value of a writer that gives none. */
function headOf(batch, from) {
  const value = object(from);
  const status = text(value.status) ?? "";
  const given = object(value.counts);
  return {
    id: batch,
    status,
    intent: INTENTS.includes(value.intent) ? value.intent : (INTENT_OF_STATUS.get(status) ?? "run"),
    pageCount: count(value.page_count) ?? Object.keys(object(value.pages)).length,
    counts: Object.fromEntries(STATES.map((state) => [state, count(given[state]) ?? 0])),
  };
}

/** What the pages of one batch add up to; as JSON it lasts from one tick to the next. */
export class Tally {
  seen = 0;
  counts = Object.fromEntries(STATES.map((state) => [state, 0]));
  superseded = 0;
  milliseconds = 0;
  timed = 0;
  lastWaiting = ""; // when a page that waits, or was cancelled, was last written
  states = null; // by page id, or null where they are too many to be held

  constructor(before) {
    Object.assign(this, before);
  }

  /** Count a page by its small status. */
  add(page, status) {
    this.seen += 1;
    this.counts[status.status] += 1;
    if (this.states && this.states.size >= PAGES_HELD) this.states = null;
    this.states?.set(page, status.status);
    if (status.status === "cancelled" && status.superseded_by) this.superseded += 1;
    const milliseconds = count(status.duration_ms);
    if (status.status === "done" && milliseconds !== undefined) {
      this.milliseconds += milliseconds;
      this.timed += 1;
    }
    const waits = !["processing", "done", "failed"].includes(status.status);
    const updated = time(status.updated) ?? "";
    if (waits && updated > this.lastWaiting) this.lastWaiting = updated;
  }

  /** All that the batch record lists by state: pages without a status are uploaded. */
  countsOf(pageCount) {
    const more = Math.max(0, pageCount - this.seen);
    return { ...this.counts, uploaded: this.counts.uploaded + more };
  }

  get isOpen() {
    return this.counts.uploaded + this.counts.queued + this.counts.processing > 0;
  }

  get averageMs() {
    return this.timed ? Math.round(this.milliseconds / this.timed) : undefined;
  }
}

/** The status that follows from what was asked and what the pages are in. */
export function batchStatus(intent, counts, superseded) {
  const total = totalOf(counts);
  const open = total - ENDED.reduce((sum, state) => sum + counts[state], 0);
  if (intent === "upload") return "uploading";
  if (intent === "cancel") return open ? "cancelling" : "cancelled";
  if (open) {
    if (intent === "retry") return "retrying";
    return counts.processing || open < total ? "processing" : "queued";
  }
  if (counts.cancelled > superseded || (superseded && superseded === total)) return "cancelled";
  if (!counts.failed) return "completed";
  return counts.done ? "partially_completed" : "failed";
}

/**
 * Write into the batch record what its pages add up to, where that has changed: "written", "as it
 * is", or "later", when it may be done.
 *
 * The tasks write intent and pages into the same record, and KV may show it as it was before: our
 * write would undo theirs. So it is left alone while they upload; for as long as reads lag after a
 * page was queued or cancelled, which upload, retry and cancel do; and where what was asked for is
 * not the same in all that is read of it, last of all just before it is written.
 */
export async function saveSnapshot(cx, head, tally) {
  const told = snapshotOf(head, tally);
  const isTold = head.status === told.status && head.pageCount === told.page_count;
  const isSame = isTold && STATES.every((state) => head.counts[state] === told.counts[state]);
  if (isSame || head.intent === "upload") return "as it is";
  const [fresh, soon] = [-1, 1].map((sign) => iso(Date.now() + sign * 1000 * cx.lagSeconds));
  if (tally.lastWaiting > fresh && tally.lastWaiting <= soon) return "later";
  return tally.states ? saveWhole(cx, head, told, tally.states) : saveMetadata(cx, head, told);
}

/** The snapshot with the state of each page. */
async function saveWhole(cx, head, told, states) {
  const key = batchKey(cx.project, head.id);
  const { value, metadata } = await cx.kv.getWithText(key);
  if (!isObject(value)) return "as it is"; // its pages are worked on all the same
  // Page by page, and below written as it is: of so many pages there is memory for one copy.
  const pages = object(value.pages);
  for (const page in pages)
    pages[page] = { ...object(pages[page]), status: states.get(page) ?? "uploaded" };
  const { counts, average_time_ms, ...found } = told;
  const summary = {
    ...object(value.summary),
    completed: counts.done,
    failed: counts.failed,
    pending: counts.uploaded + counts.queued + counts.processing,
    average_time_ms: average_time_ms ?? null,
  };
  const created = time(value.created) ?? "";
  const reason = clip(text(value.reason), REASON_BYTES);
  const small = known({ ...found, created, counts, average_time_ms, reason });
  const whole = JSON.stringify({ ...value, ...found, pages, summary });
  if (!(await isAskedStill(cx, head, isOurs(metadata) ? metadata : value))) return "later";
  await cx.kv.put(key, whole, small);
  return "written";
}

/**
 * The snapshot of a batch that there is no memory for: in its metadata, which is what the tasks
 * read; the value goes through as it is.
 */
async function saveMetadata(cx, head, told) {
  const key = batchKey(cx.project, head.id);
  const { value, metadata } = await cx.kv.getStream(key);
  if (value && isOurs(metadata) && (await isAskedStill(cx, head, metadata))) {
    await cx.kv.put(key, value, { ...metadata, ...known(told) });
    return "written";
  }
  await value?.cancel();
  return value && isOurs(metadata) ? "later" : "as it is";
}

/** Whether the same is asked for the batch in what was read of it, and in what there is now. */
async function isAskedStill(cx, head, read) {
  const heads = [headOf(head.id, read), await readHead(cx, head.id)];
  return heads.every((one) => one?.intent === head.intent && one.pageCount === head.pageCount);
}

function snapshotOf({ intent, pageCount }, tally) {
  const counts = tally.countsOf(pageCount);
  const status = batchStatus(intent, counts, tally.superseded);
  return { status, intent, page_count: totalOf(counts), counts, average_time_ms: tally.averageMs };
}

const totalOf = (counts) => Object.values(counts).reduce((sum, some) => sum + some, 0);
