/** KV as the Worker uses it: JSON values, operations counted, throttled writes repeated. */

const KEYS_A_READ = 100; // a bulk read takes so many, and is one operation
const PAUSES = [1100, 2000, 4000]; // KV takes one write a second for a key
export const METADATA_BYTES = 1024;
const VALUE_BYTES = 25 * 1024 * 1024;

export class Kv {
  /** `operations` is what this invocation may spend. */
  constructor(namespace, operations) {
    this.namespace = namespace;
    this.left = operations;
  }

  /** Up to 1,000 keys of a listing, with their metadata; there may be none with more to come. */
  async list(prefix, cursor) {
    this.left -= 1;
    const page = await this.namespace.list({ prefix, cursor });
    return { keys: page.keys, cursor: page.list_complete ? undefined : page.cursor };
  }

  /** A listing, as far as the operations reach. */
  async *scan(prefix) {
    let cursor;
    do {
      const page = await this.list(prefix, cursor);
      yield* page.keys;
      cursor = page.cursor;
    } while (cursor && this.left > 0);
  }

  /** The text of a value, null where there is none, and its metadata. */
  async read(key) {
    this.left -= 1;
    const { value, metadata } = await this.namespace.getWithMetadata(key, "text");
    return { text: value, metadata };
  }

  /** A value: undefined where there is none, null for what is no JSON object. */
  async get(key) {
    return parse((await this.read(key)).text);
  }

  /** Values by key. */
  async getMany(keys) {
    const found = new Map();
    for (let at = 0; at < keys.length; at += KEYS_A_READ) {
      this.left -= 1;
      const texts = await this.namespace.get(keys.slice(at, at + KEYS_A_READ), "text");
      for (const [key, text] of texts) found.set(key, parse(text));
    }
    return found;
  }

  /** `value` is an object, or JSON as text. */
  async put(key, value, metadata) {
    const text = isObject(value) ? toJson(value) : value;
    const options = isObject(metadata) ? { metadata: stamped(metadata) } : {};
    await this.#insist(() => this.namespace.put(key, text, options));
  }

  async delete(key) {
    await this.#insist(() => this.namespace.delete(key));
  }

  /** No page is lost for a throttled write; what KV refuses (400, 413) it refuses again. */
  async #insist(write) {
    for (const pause of [...PAUSES, null]) {
      this.left -= 1;
      try {
        return await write();
      } catch (error) {
        if (pause === null || isRefusal(error)) throw error;
        await sleep(pause);
      }
    }
  }
}

const isRefusal = (error) => /failed: 4(?!29)\d\d/.test(String(error));

/** What `work` returns; nothing where KV refuses for good what it writes: the others go on. */
export async function unlessRefused(work) {
  try {
    return await work();
  } catch (error) {
    if (!isRefusal(error)) throw error;
    console.error(JSON.stringify({ refused: String(error) }));
  }
}

/**
 * The tasks tell an older read from a newer one by the time of change in the metadata. Those of
 * others are carried along, and may have no room for it.
 */
function stamped(metadata) {
  const withTime = { ...metadata, rev: iso() };
  const bytes = new TextEncoder().encode(JSON.stringify(withTime)).length;
  return "updated" in metadata || bytes > METADATA_BYTES ? metadata : withTime;
}

/** JSON that Python reads as well: half a surrogate pair is no text there. */
export const toJson = (value) =>
  JSON.stringify(value, (_, part) => (typeof part === "string" ? part.toWellFormed() : part));

/** Whether KV takes no value that long. */
export const isTooLarge = (text) =>
  text.length > VALUE_BYTES / 4 && new TextEncoder().encode(text).length > VALUE_BYTES;

export function parse(text) {
  try {
    const value = JSON.parse(text ?? "");
    return isObject(value) ? value : null;
  } catch {
    return text === null ? undefined : null;
  }
}

export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** The time as the records have it, with six digits, so that text order is time order. */
export const iso = (ms = Date.now()) => new Date(ms).toISOString().replace("Z", "000Z");

export const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
