/**
 * The status record of a page: in each of its states, in whose hands it is, and in small. What
 * nimbus_tasks/core/records.py has in Python, on the JSON values themselves: fields that are not
 * known here are carried along. Pure functions.
 */

import { CLOCK_SKEW_MS, NEW_PAGE_PRIORITY, STATES } from "./fields.js";
import { count, first, id, known, number, object, priority, text, time } from "./fields.js";
import { METADATA_BYTES, isObject, iso } from "./kv.js";

const [PATH_BYTES, ERROR_BYTES, STEP_BYTES, CODE_BYTES] = [220, 260, 120, 60];
/** A claim of a writer that knows no leases counts as given up when so long nothing came of it. */
const LEASELESS_MS = 600_000;
const LONGEST_LEASE_MS = 3_600_000;
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

/** The page in somebody's hands: one attempt more, a token and a lease. */
export function asClaimed(status, { claim, claimed, lease }) {
  const at = { started: claimed, current_step: null, progress: 0, claim, lease };
  return {
    ...without(status),
    status: "processing",
    updated: claimed,
    attempts: (count(status.attempts) ?? 0) + 1,
    queued: status.queued,
    processing: { ...unknownOf(status), ...at },
  };
}

/** The page with an outcome, good or bad. */
export function asEnded(status, outcome) {
  const { lapses, spent, ...base } = without(status, outcome.usage);
  const { started, completed, duration_ms, changes, confidence, error, code } = outcome;
  const part = { ...unknownOf(status), started, duration_ms, usage: spent };
  const updated = iso();
  if (error === undefined) {
    const result = { ...part, completed, success: true, changes, confidence };
    return { ...base, status: "done", updated, result };
  }
  const failure = { ...part, message: error, code, timestamp: completed };
  return { ...base, status: "failed", updated, error: failure };
}

/** A page whose holder was never heard of again, once more than can be chance. */
export function asLost(status, message) {
  const started = time(object(status.processing).started);
  const outcome = { started, completed: iso(), error: message, code: "worker_lost" };
  return { ...asEnded(status, outcome), lapses: status.lapses };
}

/** The page in the queue, at its place of before or of `queuedAt`; an attempt has taken `usage`. */
export function asQueued(status, usage, queuedAt) {
  const [updated, place] = [iso(), object(status.queued)];
  const queued = {
    priority: priority(place.priority) ?? NEW_PAGE_PRIORITY,
    queued_at: queuedAt ?? time(place.queued_at) ?? updated,
  };
  return { ...without(status, usage), status: "queued", updated, queued };
}

export function asCancelled(status) {
  return { ...without(status), status: "cancelled", updated: iso() };
}

/** The record without the part that goes with its state; what its attempts took is in `spent`. */
function without(status, usage) {
  const { queued, processing, result, error, spent, ...rest } = status;
  const all = usageOf(status, usage);
  return Object.keys(all).length ? { ...rest, spent: all } : rest;
}

/** The record of a page in hand, with what its attempt has taken so far. */
export function withUsage(status, usage) {
  return usage ? { ...status, spent: usageOf(status, usage) } : status;
}

/**
 * What the attempts of a page have taken so far, with what is `more`: `{tokens_in, tokens_out,
 * cost}`, as far as it is known. It is in the outcome, and in `spent` while there is none.
 */
function usageOf(status, more) {
  const told = [object(status.result).usage, object(status.error).usage, status.spent];
  const before = usageFields(told.find((part) => isObject(part) && Object.keys(part).length));
  if (!more) return before;
  const costs = [before.cost, more.cost].filter((cost) => cost !== undefined);
  return {
    tokens_in: (before.tokens_in ?? 0) + more.tokens_in,
    tokens_out: (before.tokens_out ?? 0) + more.tokens_out,
    ...(costs.length ? { cost: Number((costs[0] + (costs[1] ?? 0)).toFixed(8)) } : {}),
  };
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
  const pick = (fields, names) =>
    Object.fromEntries(Object.entries(object(fields)).filter(([name]) => names.includes(name)));
  const own = pick(status, RECORD_FIELDS);
  for (const part of Object.values(PARTS))
    if (part in own) own[part] = pick(own[part], PART_FIELDS);
  return own;
}

// --- who holds a page ---

/**
 * The status as the holder of `job` has to take it: null when the page is his no longer.
 *
 * KV may show a record of before the claim. So only one that is newer than the claim takes the page
 * away. An older one is out of date, even where it is an outcome: the claim has been written over
 * it, and a page that is let go then would stay in nobody's hands until its lease is over.
 */
export function held(status, job) {
  if (status.status === "processing" && status.processing?.claim === job.claim) return status;
  if ((time(status.updated) ?? "") > job.claimed) return null;
  return { ...asClaimed(status, job), attempts: job.attempt, batch_id: job.batch_id };
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
  if (state === "queued") {
    const place = object(status.queued);
    const [rank, queued_at] = [priority(place.priority), time(place.queued_at)];
    return { ...fields, ...known({ priority: rank, queued_at }) };
  }
  const started = first(time, ...parts.map((part) => part.started));
  if (state === "processing") {
    const step = clip(text(processing.current_step), STEP_BYTES);
    const [progress, lease] = [number(processing.progress), time(processing.lease)];
    return { ...fields, ...known({ started, step, progress, lease }) };
  }
  const ends = [result.completed, error.completed, error.timestamp, result.timestamp];
  const completed = first(time, ...ends);
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

/** The length of JSON as Python writes it, in ASCII. */
const escapedLength = (value) => JSON.stringify(value).replace(/[^\x00-\x7f]/g, "\\u0000").length;
