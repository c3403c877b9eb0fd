/**
 * Batches: what their pages add up to, and the snapshot of it in the batch record. What lifecycle.py
 * and batch_records.py of nimbus_tasks/core have in Python.
 *
 * @typedef {object} Head  a batch record without its pages
 * @property {string} id
 * @property {string} status
 * @property {string} intent  upload, run, retry or cancel: what was last asked for the batch
 * @property {number} pageCount
 * @property {Record<string, number>} counts
 */

import { UNREADABLE, iso } from "./kv.js";
import {
  ENDED,
  STATES,
  batchKey,
  clip,
  count,
  id,
  known,
  lastPart,
  object,
  text,
  time,
} from "./records.js";

const ENDED_BATCH = ["completed", "partially_completed", "failed", "cancelled"];
const INTENT_OF_STATUS = new Map([
  ["uploading", "upload"],
  ["retrying", "retry"],
  ["cancelling", "cancel"],
  ["cancelled", "cancel"],
]);
const REASON_BYTES = 260;

/** Whether nothing changes the batch unasked. */
export const isFinal = (/** @type {Head} */ head) => ENDED_BATCH.includes(head.status);

/**
 * The heads of all batches of the project, by id.
 * @param {import("./kv.js").Kv} kv
 * @param {string} project
 */
export async function readHeads(kv, project) {
  /** @type {Map<string, Head>} */
  const heads = new Map();
  for await (const { name, metadata } of kv.scan(batchKey(project, ""))) {
    const batch = lastPart(name);
    if (id(batch) === undefined) continue;
    const ours = text(metadata?.intent) !== undefined && count(metadata?.page_count) !== undefined;
    heads.set(batch, headOf(batch, ours ? metadata : await kv.get(name)));
  }
  return heads;
}

/**
 * @param {string} batch
 * @param {any} from  metadata of ours, or the whole value of a writer that gives none
 * @returns {Head}
 */
function headOf(batch, from) {
  const value = object(from);
  const status = text(value.status) ?? "";
  const given = object(value.counts);
  return {
    id: batch,
    status,
    intent: text(value.intent) ?? INTENT_OF_STATUS.get(status) ?? "run",
    pageCount: count(value.page_count) ?? Object.keys(object(value.pages)).length,
    counts: Object.fromEntries(STATES.map((state) => [state, count(given[state]) ?? 0])),
  };
}

/** What the pages of one batch add up to. */
export class Tally {
  constructor() {
    /** @type {Map<string, string>} */
    this.states = new Map();
    this.superseded = 0;
    this.milliseconds = 0;
    this.timed = 0;
    this.lastWaiting = ""; // when a page that waits, or was cancelled, was last written
  }

  /** @param {string} page @param {Record<string, any>} status  its small form */
  add(page, status) {
    this.states.set(page, status.status);
    if (status.status === "cancelled" && status.superseded_by) this.superseded += 1;
    if (status.status === "done" && count(status.duration_ms) !== undefined) {
      this.milliseconds += status.duration_ms;
      this.timed += 1;
    }
    const waits = !["processing", "done", "failed"].includes(status.status);
    if (waits && String(status.updated) > this.lastWaiting)
      this.lastWaiting = String(status.updated);
  }

  /** @param {number} pageCount  what the batch record lists; pages without a status are uploaded */
  counts(pageCount) {
    const counts = Object.fromEntries(STATES.map((state) => [state, 0]));
    for (const state of this.states.values()) counts[state] += 1;
    counts.uploaded += Math.max(0, pageCount - this.states.size);
    return counts;
  }

  get averageMs() {
    return this.timed ? roundHalfEven(this.milliseconds / this.timed) : undefined;
  }
}

/**
 * The status that follows from what was asked and what the pages are in.
 * @param {string} intent
 * @param {Record<string, number>} counts
 * @param {number} superseded
 */
export function batchStatus(intent, counts, superseded) {
  const total = Object.values(counts).reduce((sum, some) => sum + some, 0);
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
 * Write into the batch record what its pages add up to, where that has changed.
 *
 * The tasks write intent and pages into the same record, and KV may show it as it was before: our
 * write would undo theirs. So it is left alone while they upload, and for as long as reads lag after
 * a page was queued or cancelled, which upload, retry and cancel do. Returns whether it was written.
 * @param {import("./kv.js").Kv} kv
 * @param {string} project
 * @param {Head} head
 * @param {Tally} tally
 * @param {number} lagSeconds
 */
export async function saveSnapshot(kv, project, head, tally, lagSeconds) {
  if (head.intent === "upload" || tally.lastWaiting > iso(Date.now() - lagSeconds * 1000))
    return false;
  if (isUpToDate(head, tally)) return false;
  const key = batchKey(project, head.id);
  const { value, metadata } = await kv.getWithText(key);
  if (value === undefined || value === UNREADABLE) return false; // its pages are worked on all the same
  const ours = text(metadata?.intent) !== undefined;
  const { intent } = headOf(head.id, ours ? metadata : value);
  if (intent !== head.intent) return false; // one of the two is old
  // In place, and below written as it is: of 100,000 pages there is memory for one copy.
  const pages = object(value.pages);
  for (const page in pages) {
    pages[page] = { ...object(pages[page]), status: tally.states.get(page) ?? "uploaded" };
  }
  const counts = tally.counts(Object.keys(pages).length);
  const pageCount = Object.values(counts).reduce((sum, some) => sum + some, 0);
  const status = batchStatus(intent, counts, tally.superseded);
  const average = tally.averageMs;
  const summary = {
    ...object(value.summary),
    completed: counts.done,
    failed: counts.failed,
    pending: counts.uploaded + counts.queued + counts.processing,
    average_time_ms: average ?? null,
  };
  await kv.put(
    key,
    JSON.stringify({ ...value, page_count: pageCount, status, intent, pages, summary }),
    known({
      status,
      created: time(value.created) ?? "",
      page_count: pageCount,
      intent,
      counts,
      average_time_ms: average,
      reason: clip(text(value.reason), REASON_BYTES),
    }),
  );
  return true;
}

/** @param {Head} head @param {Tally} tally */
function isUpToDate(head, tally) {
  const counts = tally.counts(head.pageCount);
  const status = batchStatus(head.intent, counts, tally.superseded);
  return head.status === status && STATES.every((state) => head.counts[state] === counts[state]);
}

/** As Python rounds. @param {number} value */
function roundHalfEven(value) {
  const rounded = Math.round(value);
  return value % 1 === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}
