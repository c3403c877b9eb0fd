/**
 * Ticks on a KV of very many pages, which makes its listings as they are asked for: what they say, and
 * the operations of each. Every second page is done; `open` says whether the others are queued, or
 * cancelled. Arguments: the Worker's folder, pages, batches, ticks, operations, open (0 or 1).
 */

const [folder, ...numbers] = process.argv.slice(2);
const [count, batches, ticks, operations, open] = numbers.map(Number);
const { tick } = await import(`${folder}/tick.js`);

const AT = "2026-11-24T08:00:00.000000Z";
const page = (n) => `page_${n.toString(16).padStart(12, "0")}`;
const batch = (n) => `batch_20261124_08000${n % batches}`;
const listed = Math.ceil(count / batches);
const small = (n) => ({
  ...{ status: n % 2 ? "done" : open ? "queued" : "cancelled", batch_id: batch(n), updated: AT, attempts: 1, uploaded: AT },
  ...{ path: `dist/a/folder/of/some/pages/page-${n}.html`, priority: 5, queued_at: AT },
  ...(n % 2 ? { started: AT, completed: AT, duration_ms: 3000, changes: 2, confidence: 0.75 } : {}),
});
const head = { status: "processing", created: AT, intent: "run", page_count: listed, counts: {} };

function record(key) {
  const pages = {};
  for (let n = Number(key.at(-1)); n < count; n += batches) pages[page(n)] = { status: "queued", uploaded: AT };
  return JSON.stringify({ created: AT, page_count: listed, status: "processing", intent: "run", pages });
}

let spent = 0;
const written = {};
const kept = new Map();
const KV = {
  async list({ prefix, cursor }) {
    spent += 1;
    const from = Number(cursor ?? 0);
    const some = (length, make) => Array.from({ length }, (_, i) => make(from + i));
    const all = (keys, more) => ({ keys, list_complete: !more, cursor: more && String(from + 1000) });
    if (prefix.startsWith("batch:")) {
      const heads = some(batches, (n) => `batch:p:${batch(n)}`).map((name) => ({ name, metadata: written[name] ?? head }));
      return all(heads.filter(({ name }) => name.startsWith(prefix)));
    }
    if (prefix.startsWith("queue:") && open)
      return all(some(1000, (n) => ({ name: `${prefix}05:20261124080000000000:${page(2 * n)}` })), true);
    if (!prefix.startsWith("status:")) return all([]);
    const length = Math.min(1000, count - from);
    return all(some(length, (n) => ({ name: prefix + page(n), metadata: small(n) })), from + 1000 < count);
  },
  async get(keys) {
    spent += 1;
    const value = { status: "queued", batch_id: batch(0), updated: AT, queued: { priority: 5, queued_at: AT } };
    return new Map(keys.map((key) => [key, JSON.stringify(value)]));
  },
  async getWithMetadata(key) {
    spent += 1;
    if (!key.startsWith("batch:")) return { value: kept.get(key) ?? null, metadata: null };
    const text = record(key);
    return { value: text, metadata: head };
  },
  async put(key, value, { metadata } = {}) {
    spent += 1;
    if (key.startsWith("cloud:")) kept.set(key, value);
    if (!key.startsWith("batch:")) return;
    written[key] = { ...metadata, states: value.match(/"status":"done","uploaded"/g)?.length ?? 0 };
  },
  async delete() {
    spent += 1;
  },
};

const said = [];
for (let n = 0; n < ticks; n += 1) {
  spent = 0;
  const env = { KV, PAGES: { sendBatch: async () => (spent += 1) }, PROJECT_ID: "p", CONCURRENCY: 5000, OPERATIONS: operations };
  said.push({ ...(await tick(env)), spent });
}
process.stdout.write(JSON.stringify({ said, written }));
