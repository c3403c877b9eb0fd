/** `logs:{project}:{page}`: what happened to a page, attempt after attempt; nothing is erased. */

import { isObject, iso, toJson } from "./kv.js";
import { logsKey } from "./records.js";

const MAX_CHARACTERS = 6_000_000; // a value may have 25 MB, and a character four bytes

/**
 * @param {string} step
 * @param {string} message
 * @param {{level?: string, data?: object, duration_ms?: number}} [more]
 */
export function logEntry(step, message, { level = "info", data, duration_ms } = {}) {
  return {
    timestamp: iso(),
    level,
    step,
    message,
    ...(data && Object.keys(data).length ? { data } : {}),
    ...(duration_ms === undefined ? {} : { duration_ms }),
  };
}

/**
 * Add entries at the end of a page's log.
 * @param {import("./kv.js").Kv} kv
 * @param {string} project
 * @param {string} page
 * @param {object[]} added
 */
export async function addToLog(kv, project, page, added) {
  const key = logsKey(project, page);
  const found = await kv.get(key);
  const record = isObject(found) ? found : { page_id: page };
  let entries = [...(Array.isArray(record.entries) ? record.entries : []), ...added];
  let text = toJson({ ...record, entries });
  while (text.length > MAX_CHARACTERS && entries.length > 1) {
    entries = entries.slice(Math.floor(entries.length / 2)); // the oldest go: the page has to end
    text = toJson({ ...record, entries });
  }
  await kv.put(key, text, { entries: entries.length });
}
