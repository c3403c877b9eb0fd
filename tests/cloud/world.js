/**
 * For the cases of the Worker: a KV in memory, with which everything is as it should be, records to
 * fill it with, and what runs the cases. Argument of whoever imports it: the Worker's folder.
 */

const [folder] = process.argv.slice(2);
/** A module of the Worker. */
export const worker = (name) => import(`${folder}/${name}.js`);
const { consume } = await worker("consumer");
const { iso } = await worker("kv");
const { PageError } = await worker("page_error");
const { small } = await worker("records");

export const LEASE = 1000 * 900;
export const long = iso(Date.now() - 3_600_000);
export const key = (n) => `queue:p:05:${long.replace(/[^0-9]/g, "")}:page_${n}`;
export const queuedAt = (at, more) => ({ status: "queued", batch_id: "b", updated: at, attempts: 0, ...more });
export const QUEUED = queuedAt(long, { queued: { priority: 5, queued_at: long } });
/** Records of so many pages, from page_`first` on. */
export const pages = (count, status, first = 1) =>
  Object.fromEntries(Array.from({ length: count }, (_, n) => [`status:p:page_${first + n}`, status]));
export const queued = (count, first = 1) => ({
  ...pages(count, QUEUED, first),
  ...Object.fromEntries(Array.from({ length: count }, (_, n) => [key(first + n), {}])),
});
export const claimed = (claim, lease) => ({
  ...{ status: "processing", batch_id: "b", updated: long, attempts: 1, lapses: 0 },
  processing: { started: long, current_step: null, progress: 0, claim, lease },
});
export const batch = (intent) => ({ status: "processing", intent, created: long, page_count: 1, counts: {}, pages: { page_1: {} } });
/**
 * A KV of those values, and an environment on it; `sent` and `puts` are what was done, and `spent()`
 * how many operations it has taken. A Queue takes what Cloudflare's takes in one call.
 */
export function world(values, more = {}) {
  const [data, sent, puts] = [new Map(Object.entries(values)), [], []];
  const text = (name) => (data.has(name) ? JSON.stringify(data.get(name)) : null);
  const written = new WeakMap(); // metadata, by value
  const made = (name) => (/^(status|superseded):/.test(name) ? small(data.get(name)) : name.startsWith("batch:") ? data.get(name) : null);
  const told = (name) => written.get(data.get(name)) ?? made(name);
  let spent = 0;
  const KV = {
    list: async ({ prefix, cursor }) => {
      const names = [...data.keys()].filter((name) => name.startsWith(prefix)).sort();
      const [from, to] = [Number(cursor ?? 0), Number(cursor ?? 0) + 1000];
      const keys = names.slice(from, to).map((name) => ({ name, metadata: told(name) }));
      return { keys, list_complete: to >= names.length, cursor: String(to) };
    },
    get: async (names) => new Map(names.map((name) => [name, text(name)])),
    getWithMetadata: async (name) => ({ value: text(name), metadata: data.has(name) ? told(name) : null }),
    put: async (name, value, { metadata } = {}) => {
      if (JSON.stringify(metadata ?? null).length > 1024) throw new Error("KV PUT failed: 413 metadata");
      if (name.startsWith("status:") && !metadata?.status) throw new Error("a status has a small form");
      puts.push(name);
      data.set(name, JSON.parse(value));
      if (metadata) written.set(data.get(name), metadata);
    },
    delete: async (name) => void data.delete(name),
  };
  const counted = (target, name) => {
    const real = target[name];
    return (...given) => ((spent += 1), real(...given));
  };
  const sendBatch = async (some) => {
    const bytes = some.reduce((sum, { body }) => sum + JSON.stringify(body).length, 0);
    if (some.length > 100 || bytes > 256_000) throw new Error(`${some.length} messages, ${bytes} bytes`);
    sent.push(...some);
  };
  const PAGES = { sendBatch: (some) => ((spent += 1), sendBatch(some)) };
  const vars = { PROJECT_ID: "p", WRITE_SECONDS: "0", LAG_SECONDS: "0", ...more };
  const env = { KV: new Proxy(KV, { get: counted }), PAGES, ...vars };
  return { data, sent, puts, env, spent: () => spent };
}

/** The message of a tick by which page_`n` was claimed, or is to be. */
export const message = (n = 1, claim = "c1") => ({ item: key(n), claim });

/** Deliver a message to a processor; what became of it. */
export async function deliver(env, processor, attempts = 1, body = message()) {
  let end;
  const delivered = { body, attempts, ack: () => (end = "ack"), retry: ({ delaySeconds }) => (end = delaySeconds) };
  await consume({ messages: [delivered] }, env, processor);
  return end;
}
export const inHand = (more = {}) => ({
  "status:p:page_1": claimed("c1", iso(Date.now() + LEASE)),
  "page:p:page_1": { page_id: "page_1" },
  "batch:p:b": batch("run"),
  ...more,
});
export const state = ({ data }) => data.get("status:p:page_1")?.status;
export const failing = async () => {
  throw new PageError("no ".repeat(1000), "broken".repeat(20)); // metadata have no room for that
};

/** Run the cases one after the other; what each says goes to stdout, as JSON. */
export async function tell(cases) {
  console.log = () => {}; // stdout is for what the cases say
  const said = {};
  for (const [name, run] of Object.entries(cases)) said[name] = await run();
  process.stdout.write(JSON.stringify(said));
}
