/**
 * KV as the rest of the Worker uses it: JSON values, operations counted, throttled writes repeated.
 */

/** The time as the records have it, with six digits, so that text order is time order. */
export const iso = (ms = Date.now()) => new Date(ms).toISOString().replace("Z", "000Z");

const KEYS_A_READ = 100; // a bulk read takes so many, and is one operation
const CONNECTIONS = 6; // an invocation has so many open at once; more would only wait
const PAUSES = [1100, 2000, 4000]; // KV takes one write a second for a key
const METADATA_BYTES = 1024;
const VALUE_BYTES = 25 * 1024 * 1024;

/** What KV refuses (400, 413) it refuses again. */
const isRefusal = (error) => /failed: 4(?!29)\d\d/.test(String(error));

export const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

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

  /** Values by key: undefined where there is none, null for what is no JSON object. */
  async getMany(keys) {
    const found = new Map();
    const chunks = [];
    for (let at = 0; at < keys.length; at += KEYS_A_READ)
      chunks.push(keys.slice(at, at + KEYS_A_READ));
    for (let chunk; (chunk = chunks.pop());) {
      this.left -= 1;
      try {
        const texts = await this.namespace.get(chunk, "text");
        for (const [key, text] of texts) found.set(key, parse(text));
      } catch (error) {
        // One answer has 25 MB at most, which a single value may fill.
        if (chunk.length === 1) throw error;
        const half = chunk.length >> 1;
        chunks.push(chunk.slice(0, half), chunk.slice(half));
      }
    }
    return found;
  }

  async get(key) {
    return (await this.getWithText(key)).value;
  }

  /** A value, the text of it, and its metadata. */
  async getWithText(key) {
    this.left -= 1;
    const { value, metadata } = await this.namespace.getWithMetadata(key, "text");
    return { value: parse(value), text: value ?? "", metadata };
  }

  /** A value of any size, and its metadata: the stream has to be read, or cancelled. */
  async getStream(key) {
    this.left -= 1;
    return this.namespace.getWithMetadata(key, "stream");
  }

  /** `value` is an object, JSON as text, or a stream of it. */
  async put(key, value, metadata) {
    const body = isObject(value) && !(value instanceof ReadableStream) ? toJson(value) : value;
    const options = metadata == null ? {} : { metadata: stamped(metadata) };
    await this.#insist(() => this.namespace.put(key, body, options));
  }

  async delete(key) {
    await this.#insist(() => this.namespace.delete(key));
  }

  /**
   * Several writes, as many at once as there are connections. Returns the items of those that KV
   * refuses for good, a record of somebody else that has grown too large, say: the others go on.
   */
  async all(items, write) {
    const [todo, refused] = [[...items].values(), new Set()];
    const hand = async () => {
      for (const item of todo) {
        try {
          await write(item);
        } catch (error) {
          if (!isRefusal(error)) throw error;
          console.error(JSON.stringify({ refused: String(error) }));
          refused.add(item);
        }
      }
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, hand));
    return refused;
  }

  async #insist(write) {
    for (const pause of [...PAUSES, null]) {
      this.left -= 1;
      try {
        return void (await write());
      } catch (error) {
        // Too fast for the key, or KV is not well: what a page has cost is not to be lost for it.
        if (pause === null || isRefusal(error)) throw error;
        await sleep(pause);
      }
    }
  }
}

/**
 * The tasks tell an older read from a newer one by the time of change in the metadata. Those of
 * others are carried along, and may have no room for it.
 */
function stamped(metadata) {
  if (!isObject(metadata) || "updated" in metadata) return metadata;
  const withTime = { ...metadata, rev: iso() };
  const bytes = new TextEncoder().encode(JSON.stringify(withTime)).length;
  return bytes <= METADATA_BYTES ? withTime : metadata;
}

/** JSON that Python reads as well: half a surrogate pair is no text there. */
export const toJson = (value) =>
  JSON.stringify(value, (_, part) => (typeof part === "string" ? part.toWellFormed() : part));

/** Whether KV takes no value that long. */
export const isTooLarge = (text) =>
  text.length > VALUE_BYTES / 4 && new TextEncoder().encode(text).length > VALUE_BYTES;

function parse(text) {
  if (text === null) return undefined;
  try {
    const value = JSON.parse(text);
    return isObject(value) ? value : null;
  } catch {
    return null;
  }
}

export const isObject = (value) =>
  typeof value === "object" && value !== null && !Array.isArray(value);
