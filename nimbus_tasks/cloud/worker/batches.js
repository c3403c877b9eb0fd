/**
 * Batches: what their pages add up to, and the snapshot of it in the batch record. What
 * lifecycle.py and batch_records.py of nimbus_tasks/core have in Python.
 *
 * A head is a batch record without its pages: `{id, status, intent, page_count, counts, rev}`. The
 * intent is what was last asked for the batch, `rev` when the record was written, and all else the
 * snapshot of whoever wrote it.
 */

import { STATES, batchKey, count, idUnder, isFresh, known, object, text, time } from "./fields.js";
import { parse, unlessRefused } from "./kv.js";

const FINAL = ["completed", "partially_completed", "failed", "cancelled"];
const INTENTS = ["upload", "run", "retry", "cancel"];
/** So many pages' states a tick holds, and the record of their batch, in half of its 128 MB. */
export const PAGES_HELD = 100_000;
/** Records without metadata, of other writers, have to be read whole: so many, the newest. */
const FOREIGN_READ = 20;

/** Listing of pages taken over; record read; listing and record written; remember of tick.js. */
const OPERATIONS_A_SNAPSHOT = 6;

/** Whether the batch is over: then nothing changes it but a retry, or an upload. */
export const isFinal = (head) => FINAL.includes(head.status);

/** The heads of the project's batches, or of those whose ids begin so, by id. */
export async function readHeads({ kv, project }, beginning = "") {
  const heads = new Map();
  const foreign = [];
  for await (const { name, metadata } of kv.scan(batchKey(project, beginning))) {
    const batch = idUnder(batchKey(project, ""), name);
    if (batch === undefined) continue;
    if (isOurs(metadata)) heads.set(batch, headOf(batch, metadata));
    else foreign.push(batch);
  }
  for (const batch of foreign.slice(-FOREIGN_READ))
    heads.set(batch, headOf(batch, await kv.get(batchKey(project, batch))));
  return heads;
}

/** The head of a batch as it is now; it costs a listing, since the record may have 25 MB. */
const readHead = async (cx, batch) => (await readHeads(cx, batch)).get(batch);

/** Whether a cancel has been asked for a batch. */
export const isCancelled = async (cx, batch) => (await readHead(cx, batch))?.intent === "cancel";

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
    // A writer that does not say what was asked for says that it is uploading, cancelled, …
    intent: INTENTS.find((one) => (text(value.intent) ?? status).startsWith(one)) ?? "run",
    page_count: count(value.page_count) ?? Object.keys(object(value.pages)).length,
    counts: Object.fromEntries(STATES.map((state) => [state, count(given[state]) ?? 0])),
    rev: text(value.rev),
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
  add(page, { status, updated, superseded_by, duration_ms }) {
    this.seen += 1;
    this.counts[status] += 1;
    if (this.states && this.states.size >= PAGES_HELD) this.states = null;
    this.states?.set(page, status);
    if (status === "cancelled" && superseded_by) this.superseded += 1;
    if (status === "done" && count(duration_ms) !== undefined) {
      this.milliseconds += count(duration_ms);
      this.timed += 1;
    }
    const waits = !["processing", "done", "failed"].includes(status);
    if (waits && time(updated) > this.lastWaiting) this.lastWaiting = updated;
  }

  get isOpen() {
    return this.counts.uploaded + this.counts.queued + this.counts.processing > 0;
  }

  /** What the batch record is to say. Pages that it lists and that have no status are uploaded. */
  snapshot({ intent, page_count }) {
    const more = Math.max(0, page_count - this.seen);
    const counts = { ...this.counts, uploaded: this.counts.uploaded + more };
    return {
      status: batchStatus(intent, counts, this.superseded),
      intent,
      page_count: this.seen + more,
      counts,
      average_time_ms: this.timed ? Math.round(this.milliseconds / this.timed) : undefined,
    };
  }
}

/** The status that follows from what was asked and what the pages are in. */
export function batchStatus(intent, counts, superseded) {
  const total = STATES.reduce((sum, state) => sum + counts[state], 0);
  const ended = counts.done + counts.failed + counts.cancelled;
  if (intent === "upload") return "uploading";
  if (intent === "cancel") return ended < total ? "cancelling" : "cancelled";
  if (ended < total) {
    if (intent === "retry") return "retrying";
    return counts.processing || ended ? "processing" : "queued";
  }
  if (counts.cancelled > superseded || (superseded && superseded === total)) return "cancelled";
  if (!counts.failed) return "completed";
  return counts.done ? "partially_completed" : "failed";
}

/** Bring batch records up to date: how many were written, and how many are left for later. */
export async function sumUp(cx, heads, { tallies, postponed }) {
  let [snapshots, left] = [0, 0];
  for (const head of heads.values()) {
    const tally = tallies.get(head.id);
    if (!tally || (isFinal(head) && !tally.isOpen)) continue;
    if (postponed.has(head.id) || cx.kv.left < OPERATIONS_A_SNAPSHOT) {
      left += 1;
      continue;
    }
    await addSuperseded(cx, head, tally);
    const said = await unlessRefused(() => saveSnapshot(cx, head, tally));
    if (said === "written") snapshots += 1;
    if (said === "later") left += 1;
  }
  return { snapshots, left };
}

/** Count the pages that a later batch took over, as they were then: their statuses are its now. */
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
 * Write into the batch record what its pages add up to: "written", "as it is" where nothing has
 * changed, or "later" when it may be done. The tasks read the metadata, others the value, with the
 * state of each page; where there is no memory for those it stays as it is.
 *
 * The tasks write intent and pages into the same record, and KV may show it as it was before: our
 * write would undo theirs. So it is left alone
 *
 * - while they upload;
 * - for as long as reads lag after a page was queued or cancelled: upload, retry and cancel do that;
 * - as long after a retry, where the pages show nothing of it yet and the batch seems to be over;
 * - where two reads of it differ in what was asked for, of which the last is just before the write.
 */
export async function saveSnapshot(cx, head, tally) {
  const snapshot = tally.snapshot(head);
  const shown = ({ status, page_count, counts }) => JSON.stringify([status, page_count, counts]);
  if (head.intent === "upload" || shown(snapshot) === shown(head)) return "as it is";
  if (isFresh(cx, tally.lastWaiting)) return "later";
  if (head.intent === "retry" && isFinal(snapshot) && isFresh(cx, head.rev)) return "later";
  const key = batchKey(cx.project, head.id);
  let { text: value, metadata } = await cx.kv.read(key);
  const record = tally.states && parse(value); // without states the value goes back as it is
  if (record) value = null; // of so many pages there is memory for one copy
  const before = isOurs(metadata) ? metadata : record;
  // Nobody can read it; its pages are worked on all the same.
  if (!before || (tally.states && !record)) return "as it is";
  if (record) value = JSON.stringify(withSnapshot(record, snapshot, tally.states));
  const isAsked = (one) => one?.intent === head.intent && one.page_count === head.page_count;
  if (!isAsked(headOf(head.id, before)) || !isAsked(await readHead(cx, head.id))) return "later";
  const others = isOurs(metadata) ? metadata : { created: time(before.created) ?? "" };
  await cx.kv.put(key, value, known({ ...others, ...snapshot }));
  return "written";
}

/** The record with the snapshot and the state of each page, which are put in in place. */
function withSnapshot(record, { counts, average_time_ms = null, ...told }, states) {
  const pages = object(record.pages);
  for (const page in pages)
    pages[page] = { ...object(pages[page]), status: states.get(page) ?? "uploaded" };
  const summary = {
    ...object(record.summary),
    completed: counts.done,
    failed: counts.failed,
    pending: counts.uploaded + counts.queued + counts.processing,
    average_time_ms,
  };
  return { ...record, ...told, pages, summary };
}
