/**
 * KV as the rest of the Worker uses it: JSON values, operations counted, throttled writes repeated.
 */

/** The time as the records have it, with six digits, so that text order is time order. */
export const iso = (/** @type {number} */ ms = Date.now()) =>
  new Date(ms).toISOString().replace("Z", "000Z");

/** A value that is there and is no JSON object. */
export const UNREADABLE = Symbol("unreadable");
const KEYS_A_READ = 100; // a bulk read takes so many, and is one operation
const CONNECTIONS = 6; // an invocation has so many open at once; more would only wait
const PAUSES = [1100, 2000, 4000]; // KV takes one write a second for a key

/** @type {(milliseconds: number) => Promise<void>} */
export const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

export class Kv {
  /**
   * @param {KVNamespace} namespace
   * @param {number} operations  what this invocation may spend
   */
  constructor(namespace, operations) {
    this.namespace = namespace;
    this.left = operations;
  }

  /**
   * One page of a listing: up to 1,000 keys with their metadata.
   * @param {string} prefix
   * @param {string} [cursor]
   * @returns {Promise<{keys: {name: string, metadata?: any}[], cursor?: string}>}
   */
  async list(prefix, cursor) {
    this.left -= 1;
    const page = await this.namespace.list({ prefix, cursor });
    return { keys: page.keys, cursor: page.list_complete ? undefined : page.cursor };
  }

  /**
   * A whole listing, as far as the operations reach.
   * @param {string} prefix
   * @param {number} [spare]  operations that are to be left
   */
  async *scan(prefix, spare = 0) {
    let cursor;
    do {
      const page = await this.list(prefix, cursor);
      yield* page.keys;
      cursor = page.cursor;
    } while (cursor && this.left > spare);
    if (cursor) throw new OutOfOperations(`listing ${prefix} takes more than are left`);
  }

  /**
   * @param {string[]} keys
   * @returns {Promise<Map<string, any>>}  undefined where there is none, UNREADABLE for no object
   */
  async getMany(keys) {
    const found = new Map();
    for (let at = 0; at < keys.length; at += KEYS_A_READ) {
      this.left -= 1;
      const texts = await this.namespace.get(keys.slice(at, at + KEYS_A_READ), "text");
      for (const [key, text] of texts) found.set(key, parse(text));
    }
    return found;
  }

  /** @param {string} key */
  async get(key) {
    return (await this.getWithText(key)).value;
  }

  /**
   * A value, the text of it, and its metadata.
   * @param {string} key
   * @returns {Promise<{value: any, text: string, metadata: any}>}
   */
  async getWithText(key) {
    this.left -= 1;
    const { value, metadata } = await this.namespace.getWithMetadata(key, "text");
    return { value: parse(value), text: value ?? "", metadata };
  }

  /**
   * @param {string} key
   * @param {object | string} value  an object, or JSON as text
   * @param {object | null} [metadata]
   */
  async put(key, value, metadata) {
    const text = typeof value === "string" ? value : toJson(value);
    // The tasks tell an older read from a newer one by the time of change in the metadata.
    const stamped = metadata && !("updated" in metadata) ? { ...metadata, rev: iso() } : metadata;
    await this.#insist(() => this.namespace.put(key, text, stamped ? { metadata: stamped } : {}));
  }

  /** @param {string} key */
  async delete(key) {
    await this.#insist(() => this.namespace.delete(key));
  }

  /**
   * Several writes, as many at once as there are connections.
   * @template T
   * @param {T[]} items
   * @param {(item: T) => Promise<void>} write
   */
  async all(items, write) {
    const todo = items.values();
    const hand = async () => {
      for (const item of todo) await write(item);
    };
    await Promise.all(Array.from({ length: CONNECTIONS }, hand));
  }

  /** @param {() => Promise<unknown>} write */
  async #insist(write) {
    for (const pause of [...PAUSES, null]) {
      this.left -= 1;
      try {
        await write();
        return;
      } catch (error) {
        // Too fast for the key, or KV is not well: what a page has cost is not to be lost for it.
        if (pause === null) throw error;
        await sleep(pause);
      }
    }
  }
}

/** The tick has to go on at the next. */
export class OutOfOperations extends Error {}

/**
 * JSON that Python reads as well: half a surrogate pair is no text there.
 * @param {unknown} value
 */
export function toJson(value) {
  return JSON.stringify(value, (_, part) =>
    typeof part === "string" ? part.toWellFormed() : part,
  );
}

/** @param {string | null} text */
function parse(text) {
  if (text === null) return undefined;
  try {
    const value = JSON.parse(text);
    return isObject(value) ? value : UNREADABLE;
  } catch {
    return UNREADABLE;
  }
}

/** @param {unknown} value */
export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
