/**
 * The records of pages: what nimbus_tasks/core/records.py and keys.py have in Python, on the JSON
 * values themselves. Fields that are not known here are carried along. Pure functions.
 */

import { isObject, iso } from "./kv.js";

export const STATES = ["uploaded", "queued", "processing", "done", "failed", "cancelled"];
export const ENDED = ["done", "failed", "cancelled"];
const NEW_PAGE_PRIORITY = 5;
const METADATA_BYTES = 1024;
const [PATH_BYTES, ERROR_BYTES, STEP_BYTES, CODE_BYTES] = [220, 260, 120, 60];
/** A claim of a writer that knows no leases counts as given up when so long nothing came of it. */
const LEASELESS_MS = 600_000;
const LONGEST_LEASE_MS = 3_600_000;
export const CLOCK_SKEW_MS = 300_000;
const RECORD_FIELDS = (
  "status batch_id updated attempts path uploaded superseded_by lapses spent " +
  "queued processing result error"
).split(" ");
/** The part of a record that goes with its state, and the fields of all parts. */
const PARTS = { queued: "queued", processing: "processing", done: "result", failed: "error" };
const PART_FIELDS = (
  "priority queued_at started current_step progress claim lease completed success changes " +
  "confidence duration_ms usage message code timestamp"
).split(" ");

// --- fields: what somebody wrote, if it is what it should be, or else undefined ---

export const object = (value) => (isObject(value) ? value : {});
export const text = (value) => (typeof value === "string" ? value : undefined);
export const time = (value) =>
  typeof value === "string" && /^20[ -~]{0,38}$/.test(value) ? value : undefined;
export const number = (value) =>
  typeof value === "number" && Math.abs(value) < 2 ** 53 ? value : undefined;
export const count = (value) => {
  const found = number(value);
  return found !== undefined && found >= 0 ? Math.trunc(found) : undefined;
};
export const id = (value) =>
  typeof value === "string" && /^[A-Za-z0-9_-]{1,128}$/.test(value) ? value : undefined;
const priority = (value) => {
  const found = count(value);
  return found !== undefined && found >= 1 && found <= 10 ? found : undefined;
};
/** The first of the values that is what it should be. */
const first = (read, ...values) => values.map(read).find((value) => value !== undefined);
/** Those of the fields that are there. */
export const known = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

// --- keys ---

export const batchKey = (project, batch) => `batch:${project}:${batch}`;
export const pageKey = (project, page) => `page:${project}:${page}`;
export const statusKey = (project, page) => `status:${project}:${page}`;
export const logsKey = (project, page) => `logs:${project}:${page}`;
/** The id at the end of a key; undefined where it is none. */
export const idOf = (key) => id(key.slice(key.lastIndexOf(":") + 1));
/** The id that a listed key has under its prefix; undefined where it has more, or none. */
export const idUnder = (prefix, key) => id(key.slice(prefix.length));

/** Where the queue item of a queued page lies; null where we cannot know. */
export function queueKey(project, page, place) {
  const queuedAt = time(place.queued_at);
  if (queuedAt === undefined) return null;
  const rank = 10 - (priority(place.priority) ?? NEW_PAGE_PRIORITY);
  const since = queuedAt.replace(/[^0-9]/g, "");
  return `queue:${project}:${String(rank).padStart(2, "0")}:${since}:${page}`;
}

/** Whether a queue item was made after that moment, as its key tells it. */
export const isNewer = (key, moment) =>
  (key.split(":").at(-2) ?? "").replace(/[^0-9]/g, "") > moment.replace(/[^0-9]/g, "");

/** Key, value and metadata of a queued page's queue item. */
export function queueItem(project, page, status) {
  const place = {
    priority: placeOf(status).priority ?? NEW_PAGE_PRIORITY,
    queued_at: placeOf(status).queued_at ?? status.updated,
  };
  const whose = { page_id: page, batch_id: status.batch_id };
  const value = { ...whose, ...place, attempts: count(status.attempts) ?? 0 };
  return { key: queueKey(project, page, place), value, metadata: whose };
}

/** The place in the queue that a record names. */
export function placeOf(status) {
  const queued = object(status.queued);
  return known({ priority: priority(queued.priority), queued_at: time(queued.queued_at) });
}

// --- states ---

/** The page in somebody's hands: one attempt more, a token and a lease. */
export function asClaimed(status, { claim, claimed, lease }) {
  const place = placeOf(status);
  const at = { started: claimed, current_step: null, progress: 0, claim, lease };
  return {
    ...without(status),
    status: "processing",
    updated: claimed,
    attempts: (count(status.attempts) ?? 0) + 1,
    ...(Object.keys(place).length ? { queued: place } : {}),
    processing: { ...unknownOf(status), ...at },
  };
}

/** The page with an outcome, good or bad. */
export function asEnded(status, outcome) {
  const { lapses, spent, ...base } = without(status, outcome.usage);
  const { started, completed, duration_ms, changes, confidence, error, code } = outcome;
  const part = { ...unknownOf(status), started, duration_ms, ...known({ usage: spent }) };
  const updated = iso();
  if (error === undefined) {
    const result = { ...part, completed, success: true, changes, confidence };
    return { ...base, status: "done", updated, result };
  }
  const failure = { ...part, message: error, code, timestamp: completed };
  return { ...base, status: "failed", updated, error: failure };
}

/**
 * The page waiting: where it stood before, or since `queuedAt`; `usage` is what an attempt has
 * taken that is to be made again.
 */
export function asQueued(status, usage, queuedAt) {
  const updated = iso();
  const place = placeOf(status);
  const queued = {
    priority: place.priority ?? NEW_PAGE_PRIORITY,
    queued_at: queuedAt ?? place.queued_at ?? updated,
  };
  return { ...without(status, usage), status: "queued", updated, queued };
}

export function asCancelled(status) {
  return { ...without(status), status: "cancelled", updated: iso() };
}

/** A page whose holder was never heard of again, once more than can be chance. */
export function asLost(status, message) {
  const updated = iso();
  const { spent, ...base } = without(status);
  const more = known({ started: time(object(status.processing).started), usage: spent });
  const error = { message, code: "worker_lost", timestamp: updated, ...more };
  return { ...base, status: "failed", updated, error };
}

/** Whether a page, in small, is in the hands of somebody not heard of for a whole lease. */
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
 */
export function held(status, job) {
  if (status.status === "processing" && status.processing?.claim === job.claim) return status;
  if ((time(status.updated) ?? "") > job.claimed) return null;
  if (status.attempts === job.attempt && ENDED.includes(status.status)) return null;
  return { ...asClaimed(status, job), attempts: job.attempt, batch_id: job.batch_id };
}

/** Whether a message's body is a claim; one of the future would be newer than any record. */
export const isJob = (body) =>
  isObject(body) &&
  [body.page_id, body.batch_id, body.claim].every(id) &&
  [body.claimed, body.lease].every(time) &&
  Date.parse(body.claimed) <= Date.now() + CLOCK_SKEW_MS &&
  count(body.attempt) === body.attempt;

/** A record without the part that goes with its state; what it has taken, and now takes, stays. */
function without(status, usage) {
  const { queued, processing, result, error, spent, ...rest } = status;
  const all = usageOf(status, usage);
  return Object.keys(all).length ? { ...rest, spent: all } : rest;
}

/** The page in hand, of which an attempt that goes on has taken so much already. */
export function withUsage(status, usage) {
  return usage ? { ...status, spent: usageOf(status, usage) } : status;
}

/**
 * What the attempts of a page have taken so far, with what is `more`: `{tokens_in, tokens_out,
 * cost}`, as far as it is known. It is in the outcome, and in `spent` while there is none.
 */
function usageOf(status, more = {}) {
  const parts = [status.spent, object(status.error).usage, object(status.result).usage];
  const told = parts.filter((part) => isObject(part) && Object.keys(part).length);
  const before = usageFields(told.at(-1));
  const sum = (name) => {
    const there = [before[name], more[name]].filter((value) => value !== undefined);
    return there.length ? Number((there[0] + (there[1] ?? 0)).toFixed(8)) : undefined;
  };
  return known({ tokens_in: sum("tokens_in"), tokens_out: sum("tokens_out"), cost: sum("cost") });
}

/** Tokens and cost, as far as somebody gives them. */
export function usageFields(given) {
  const usage = object(given);
  return known({
    tokens_in: count(usage.tokens_in),
    tokens_out: count(usage.tokens_out),
    cost: number(usage.cost) >= 0 ? usage.cost : undefined,
  });
}

/** Unknown fields of the part that goes with the state: fields of another part are not carried. */
function unknownOf(status) {
  const part = object(status[PARTS[status.status]]);
  return Object.fromEntries(Object.entries(part).filter(([name]) => !PART_FIELDS.includes(name)));
}

/** The record without what others have put into it: there is no room for that. */
export function ownFields(status) {
  const own = Object.entries(status).filter(([name]) => RECORD_FIELDS.includes(name));
  const parts = Object.values(PARTS);
  const only = (part) => Object.entries(part).filter(([name]) => PART_FIELDS.includes(name));
  return Object.fromEntries(
    own.map(([name, value]) => [
      name,
      parts.includes(name) ? Object.fromEntries(only(object(value))) : value,
    ]),
  );
}

// --- the small form ---

/** The record in small, as metadata: one listing of these answers status, monitor and report. */
export function small(status) {
  const state = STATES.includes(status.status) ? status.status : "failed";
  const parts = [status.processing, status.result, status.error].map(object);
  const [processing, result, error] = parts;
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
  const started = first(time, ...parts.map((part) => part.started));
  if (state === "processing") {
    const step = clip(text(processing.current_step), STEP_BYTES);
    const [progress, lease] = [number(processing.progress), time(processing.lease)];
    return { ...fields, ...known({ started, step, progress, lease }) };
  }
  const completed = first(
    time,
    ...[result.completed, error.completed, error.timestamp, result.timestamp],
  );
  const duration_ms = first(count, result.duration_ms, error.duration_ms);
  const ended = known({ started, completed, duration_ms, ...usageOf(status) });
  if (state === "done") {
    const changes = first(count, result.changes, error.changes);
    const confidence = first(number, result.confidence, error.confidence);
    return { ...fields, ...ended, ...known({ changes, confidence }) };
  }
  if (state !== "failed") return fields;
  const failed = { ...fields, ...ended, ...known({ code: clip(text(error.code), CODE_BYTES) }) };
  // The error has what the others leave.
  const room = METADATA_BYTES - escapedLength(failed) - 10;
  return { ...failed, ...known({ error: clip(text(error.message), Math.min(ERROR_BYTES, room)) }) };
}

/** The length of JSON as Python writes it, in ASCII. */
const escapedLength = (value) => JSON.stringify(value).replace(/[^\x00-\x7f]/g, "\\u0000").length;

/** The text, shortened so that as JSON it takes at most so many bytes. */
export function clip(whole, limit) {
  if (whole === undefined || escapedLength(whole) <= limit) return whole;
  let shortened = "";
  for (const character of whole) {
    if (escapedLength(`${shortened}${character}…`) > limit) break;
    shortened += character;
  }
  return `${shortened}…`;
}
