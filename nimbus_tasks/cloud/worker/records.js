/**
 * The records of pages: what nimbus_tasks/core/records.py and keys.py have in Python, on the JSON
 * values themselves. Fields that are not known here are carried along.
 *
 * @typedef {Record<string, any>} Status  status:{project}:{page}
 * @typedef {{page_id: string, batch_id: string, attempt: number, claim: string, claimed: string,
 *   lease: string}} Job  a claim, as a message carries it
 */

import { iso, isObject } from "./kv.js";

export const STATES = ["uploaded", "queued", "processing", "done", "failed", "cancelled"];
export const ENDED = ["done", "failed", "cancelled"];
export const NEW_PAGE_PRIORITY = 5;
/** A page whose holders vanished this often is what makes them vanish: it fails. */
export const MAX_LAPSES = 3;

const METADATA_BYTES = 1024;
const [PATH_BYTES, ERROR_BYTES, STEP_BYTES, CODE_BYTES] = [220, 260, 120, 60];
/** A claim of a writer that knows no leases counts as given up when so long nothing came of it. */
const LEASELESS_MS = 600_000;
const LONGEST_LEASE_MS = 3_600_000;
const CLOCK_SKEW_MS = 300_000;
/** The part of a record that goes with its state. @type {Record<string, string>} */
const PARTS = { queued: "queued", processing: "processing", done: "result", failed: "error" };
const PART_FIELDS =
  "priority queued_at started current_step progress claim lease completed success changes confidence duration_ms message code timestamp".split(
    " ",
  );

export const batchKey = (/** @type {string} */ project, /** @type {string} */ batch) =>
  `batch:${project}:${batch}`;
export const pageKey = (/** @type {string} */ project, /** @type {string} */ page) =>
  `page:${project}:${page}`;
export const statusKey = (/** @type {string} */ project, /** @type {string} */ page) =>
  `status:${project}:${page}`;
export const logsKey = (/** @type {string} */ project, /** @type {string} */ page) =>
  `logs:${project}:${page}`;
/** The id at the end of a key. */
export const lastPart = (/** @type {string} */ key) => key.slice(key.lastIndexOf(":") + 1);

/**
 * Where the queue item of a queued page lies; null where we cannot know.
 * @param {string} project
 * @param {string} page
 * @param {{priority?: unknown, queued_at?: unknown}} place
 */
export function queueKey(project, page, place) {
  const queuedAt = time(place.queued_at);
  if (queuedAt === undefined) return null;
  const rank = 10 - (priority(place.priority) ?? NEW_PAGE_PRIORITY);
  return `queue:${project}:${String(rank).padStart(2, "0")}:${queuedAt.replace(/[^0-9]/g, "")}:${page}`;
}

/**
 * Whether a queue item was made after that moment, as its key tells it.
 * @param {string} key
 * @param {string} moment
 */
export function isNewer(key, moment) {
  return (key.split(":").at(-2) ?? "") > moment.replace(/[^0-9]/g, "");
}

/**
 * Key, value and metadata of a queued page's queue item.
 * @param {string} project
 * @param {string} page
 * @param {Status} status
 */
export function queueItem(project, page, status) {
  const place = {
    priority: placeOf(status).priority ?? NEW_PAGE_PRIORITY,
    queued_at: placeOf(status).queued_at ?? status.updated,
  };
  const value = {
    page_id: page,
    batch_id: status.batch_id,
    ...place,
    attempts: count(status.attempts) ?? 0,
  };
  return {
    key: queueKey(project, page, place),
    value,
    metadata: { page_id: page, batch_id: status.batch_id },
  };
}

/**
 * The page in somebody's hands: one attempt more, a token and a lease.
 * @param {Status} status
 * @param {{claim: string, claimed: string, lease: string}} by
 */
export function asClaimed(status, { claim, claimed, lease }) {
  const place = placeOf(status);
  return {
    ...without(status),
    status: "processing",
    updated: claimed,
    attempts: (count(status.attempts) ?? 0) + 1,
    ...(Object.keys(place).length ? { queued: place } : {}),
    processing: {
      ...unknownOf(status),
      started: claimed,
      current_step: null,
      progress: 0,
      claim,
      lease,
    },
  };
}

/**
 * @param {Status} status
 * @param {{step: string | null, percent: number, updated: string, lease: string}} at
 */
export function asRenewed(status, { step, percent, updated, lease }) {
  return {
    ...status,
    updated,
    processing: { ...status.processing, current_step: step, progress: percent, lease },
  };
}

/**
 * @param {Status} status
 * @param {{started: string, completed: string, duration_ms: number, changes?: number,
 *   confidence?: number | null, error?: string, code?: string}} outcome
 */
export function asEnded(
  status,
  { started, completed, duration_ms, changes, confidence, error, code },
) {
  const { lapses, ...base } = without(status);
  const part = { ...unknownOf(status) };
  return error === undefined
    ? {
        ...base,
        status: "done",
        updated: iso(),
        result: { ...part, completed, success: true, changes, confidence, duration_ms, started },
      }
    : {
        ...base,
        status: "failed",
        updated: iso(),
        error: { ...part, message: error, code, timestamp: completed, started, duration_ms },
      };
}

/**
 * The page waiting, at a place in the queue.
 * @param {Status} status
 * @param {{priority?: number, queued_at?: string}} [place]  left out: where it stood before
 */
export function asQueued(status, place = placeOf(status)) {
  const updated = iso();
  const at = {
    priority: place.priority ?? NEW_PAGE_PRIORITY,
    queued_at: place.queued_at ?? updated,
  };
  return { ...without(status), status: "queued", updated, queued: at };
}

/** @param {Status} status */
export function asCancelled(status) {
  return { ...without(status), status: "cancelled", updated: iso() };
}

/**
 * A page whose holder was never heard of again, once more than can be chance.
 * @param {Status} status
 * @param {string} error
 */
export function asLost(status, error) {
  const now = iso();
  return {
    ...without(status),
    status: "failed",
    updated: now,
    error: {
      message: error,
      code: "worker_lost",
      timestamp: now,
      ...known({ started: time(status.processing?.started) }),
    },
  };
}

/**
 * The place in the queue that a record names.
 * @param {Status} status
 */
export function placeOf(status) {
  const queued = object(status.queued);
  return known({ priority: priority(queued.priority), queued_at: time(queued.queued_at) });
}

/**
 * The record in small, as metadata: one listing of these answers status, monitor and report.
 * @param {Status} status
 */
export function small(status) {
  const state = STATES.includes(status.status) ? status.status : "failed";
  const [processing, error] = [object(status.processing), object(status.error)];
  const outcome = { ...error, ...object(status.result) };
  const started = time((Object.keys(processing).length ? processing : outcome).started);
  const fields = known({
    status: state,
    batch_id: id(status.batch_id) ?? "",
    updated: time(status.updated) ?? "",
    attempts: count(status.attempts) ?? 0,
    path: clip(text(status.path), PATH_BYTES),
    uploaded: time(status.uploaded),
    superseded_by: id(status.superseded_by),
  });
  if (state === "queued") return { ...fields, ...placeOf(status) };
  if (state === "processing")
    return {
      ...fields,
      ...known({
        started,
        step: clip(text(processing.current_step), STEP_BYTES),
        progress: number(processing.progress),
        lease: time(processing.lease),
      }),
    };
  const ended = known({
    started,
    completed: time(outcome.completed) ?? time(outcome.timestamp),
    duration_ms: count(outcome.duration_ms),
  });
  if (state === "done")
    return {
      ...fields,
      ...ended,
      ...known({ changes: count(outcome.changes), confidence: number(outcome.confidence) }),
    };
  if (state !== "failed") return fields;
  const failed = { ...fields, ...ended, ...known({ code: clip(text(error.code), CODE_BYTES) }) };
  // The error has what the others leave.
  const room = METADATA_BYTES - escapedLength(failed) - 10;
  return { ...failed, ...known({ error: clip(text(error.message), Math.min(ERROR_BYTES, room)) }) };
}

/**
 * Whether a page is in the hands of somebody who has not been heard of for a whole lease.
 * @param {{status: string, lease?: unknown, updated?: unknown}} page  the small form
 * @param {string} now
 */
export function hasLapsed(page, now) {
  if (page.status !== "processing") return false;
  const [sign, lease] = [Date.parse(String(page.updated)), time(page.lease)];
  if (Number.isNaN(sign)) return lease === undefined || lease < now;
  // A sign of life from the future is of before a clock was set back, and says nothing any more.
  if (sign - Date.parse(now) > CLOCK_SKEW_MS) return true;
  // No worker gives itself more than an hour: a lease that says so is not believed.
  const isBelieved = lease !== undefined && lease <= iso(sign + LONGEST_LEASE_MS + CLOCK_SKEW_MS);
  return (isBelieved ? lease : iso(sign + LEASELESS_MS)) < now;
}

/**
 * The status as the holder of `job` has to take it: null when the page is his no longer.
 *
 * KV may show a record of before the claim. So what is older than the claim counts as not seen yet,
 * and only what is newer, or has ended this very attempt, takes the page away.
 * @param {Status} status
 * @param {Job} job
 * @returns {Status | null}
 */
export function held(status, job) {
  if (status.status === "processing" && status.processing?.claim === job.claim) return status;
  if (String(status.updated) > job.claimed) return null;
  if (status.attempts === job.attempt && ENDED.includes(status.status)) return null;
  return { ...asClaimed(status, job), attempts: job.attempt, batch_id: job.batch_id };
}

/** @type {(value: unknown) => Record<string, any>} */
export const object = (value) => /** @type {any} */ (isObject(value) ? value : {});
/** @type {(value: unknown) => string | undefined} */
export const text = (value) => (typeof value === "string" ? value : undefined);
/** @type {(value: unknown) => string | undefined} */
export const time = (value) =>
  typeof value === "string" && /^20[ -~]{0,38}$/.test(value) ? value : undefined;
/** @type {(value: unknown) => number | undefined} */
export const number = (value) =>
  typeof value === "number" && Math.abs(value) < 2 ** 53 ? value : undefined;
/** @type {(value: unknown) => number | undefined} */
export const count = (value) => {
  const found = number(value);
  return found !== undefined && found >= 0 ? Math.trunc(found) : undefined;
};
/** @type {(value: unknown) => string | undefined} */
export const id = (value) =>
  typeof value === "string" && /^[A-Za-z0-9_-]{1,128}$/.test(value) ? value : undefined;
/** Those of the fields that are there. @type {<T extends object>(fields: T) => T} */
export const known = (fields) =>
  /** @type {any} */ (
    Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined))
  );

/** @type {(value: unknown) => number | undefined} */
function priority(value) {
  const found = count(value);
  return found !== undefined && found >= 1 && found <= 10 ? found : undefined;
}

/** @param {Status} status */
function without(status) {
  const { queued, processing, result, error, ...rest } = status;
  return /** @type {Status} */ (rest);
}

/** Unknown fields of the part that goes with the state. @param {Status} status */
function unknownOf(status) {
  const part = object(status[PARTS[status.status]]);
  return Object.fromEntries(Object.entries(part).filter(([name]) => !PART_FIELDS.includes(name)));
}

/** The length of JSON as Python writes it, in ASCII. @param {unknown} value */
function escapedLength(value) {
  return JSON.stringify(value).replace(/[^\x00-\x7f]/g, "\\u0000").length;
}

/**
 * The text, shortened so that as JSON it takes at most so many bytes.
 * @param {string | undefined} whole
 * @param {number} limit
 */
export function clip(whole, limit) {
  if (whole === undefined || escapedLength(whole) <= limit) return whole;
  const characters = Array.from(whole.slice(0, limit));
  let [low, high] = [0, characters.length];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (escapedLength(characters.slice(0, middle).join("") + "…") <= limit) low = middle;
    else high = middle - 1;
  }
  return characters.slice(0, low).join("") + "…";
}
