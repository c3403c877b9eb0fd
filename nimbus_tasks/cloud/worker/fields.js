/**
 * Keys of the records, and their fields as anybody may have written them. What keys.py and wire.py
 * of nimbus_tasks/core have in Python.
 */

import { isObject, iso } from "./kv.js";

export const STATES = ["uploaded", "queued", "processing", "done", "failed", "cancelled"];
export const NEW_PAGE_PRIORITY = 5;
export const CLOCK_SKEW_MS = 300_000;

export const batchKey = (project, batch) => `batch:${project}:${batch}`;
export const pageKey = (project, page) => `page:${project}:${page}`;
export const statusKey = (project, page) => `status:${project}:${page}`;
export const logsKey = (project, page) => `logs:${project}:${page}`;
export const queuePrefix = (project) => `queue:${project}:`;
/** The id at the end of a key; undefined where it is none. */
export const idOf = (key) => id(key.slice(key.lastIndexOf(":") + 1));

/** The id that a listed key has under its prefix; undefined where it has more, or none. */
export const idUnder = (prefix, key) => id(key.slice(prefix.length));

/** Where the queue item of a queued page lies; null where we cannot know. */
export function queueKey(project, page, place) {
  const queuedAt = time(place.queued_at);
  if (queuedAt === undefined) return null;
  const rank = String(10 - (priority(place.priority) ?? NEW_PAGE_PRIORITY)).padStart(2, "0");
  return `${queuePrefix(project)}${rank}:${digits(queuedAt)}:${page}`;
}

/** Whether reads may not show yet what was written at that time, which may be given in digits. */
export function isFresh({ lagSeconds }, moment) {
  const [from, to] = [-1000 * lagSeconds, CLOCK_SKEW_MS].map((ms) => iso(Date.now() + ms));
  return lagSeconds > 0 && digits(moment) > digits(from) && digits(moment) < digits(to);
}

/** Whether the item is so new that KV may not show its page's status yet, but one of before. */
export function isEarly(cx, item, updated) {
  const made = digits(item.split(":").at(-2));
  return isFresh(cx, made) && made > digits(updated);
}

const digits = (moment) => String(moment).replace(/[^0-9]/g, "");

// What somebody wrote, if it is what it should be, or else undefined.

export const object = (value) => (isObject(value) ? value : {});
export const text = (value) => (typeof value === "string" ? value : undefined);
export const time = (value) => (/^20[ -~]{0,38}$/.test(text(value) ?? "") ? value : undefined);
export const id = (value) => (/^[A-Za-z0-9_-]{1,128}$/.test(text(value) ?? "") ? value : undefined);
export const number = (value) =>
  typeof value === "number" && Math.abs(value) < 2 ** 53 ? value : undefined;
export const count = (value) => (number(value) >= 0 ? Math.trunc(value) : undefined);
export const priority = (value) =>
  count(value) >= 1 && count(value) <= 10 ? count(value) : undefined;
/** The first of the values that is what it should be. */
export const first = (read, ...values) => values.map(read).find((value) => value !== undefined);
/** Those of the fields that are there. */
export const known = (fields) =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));
