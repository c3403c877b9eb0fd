/**
 * A batch through the whole Worker (ticks, Queue, ten consumers) in a time of its own, where KV and
 * Queue are as bad as they may be: how it ends. Arguments: the Worker's folder, and as JSON
 *
 *   pages, vars, seconds (that a page takes at most), lag (ms: KV shows what was so long ago, or,
 *   where it is `uneven`, each read another time within it);
 *   drop, twice (shares of the messages), dies (of the invocations), busy, fails (of the attempts);
 *   refuses (each so many calls, the Queue)
 */

const [folder, told] = process.argv.slice(2);
const given = { seconds: 4, lag: 0, drop: 0, twice: 0, dies: 0, busy: 0, fails: 0, refuses: Infinity, vars: {}, ...JSON.parse(told) };

// --- time ---

const [RealDate, turn] = [Date, setImmediate];
let now = RealDate.UTC(2026, 10, 24, 8);
let timers = [];
globalThis.Date = class extends RealDate {
  constructor(...given) {
    super(...(given.length ? given : [now]));
  }
  static now = () => now;
};
globalThis.setTimeout = (run, ms) => {
  const timer = { at: now + ms, run };
  timers.push(timer);
  return timer;
};
globalThis.clearTimeout = (timer) => (timers = timers.filter((one) => one !== timer));
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const never = new Promise(() => {});
let seed = 1;
const chance = () => (seed = (seed * 48271) % 2147483647) / 2147483647;

const { bury, consume } = await import(`${folder}/consumer.js`);
const { PageError } = await import(`${folder}/page_error.js`);
const { small } = await import(`${folder}/records.js`);
const { tick } = await import(`${folder}/tick.js`);

// --- KV and Queue ---

const versions = new Map(); // by key
const said = { sent: {}, unordered: 0, throttled: 0, refused: 0, operations: 0 };
const asOf = () => now - given.lag * (given.uneven ? chance() : 1);
const latest = (key) => versions.get(key)?.at(-1);
const seen = (key, at) => versions.get(key)?.findLast((one) => one.at <= at) ?? { value: null };
function write(key, value, metadata = null) {
  if (key.startsWith("status:") && now - (latest(key)?.at ?? 0) < 1000) said.throttled += 1;
  versions.set(key, [...(versions.get(key) ?? []), { at: now, value, metadata }]);
}
const after = async (ms, work) => (await pause(ms), work());
const KV = {
  list: ({ prefix, cursor }) =>
    after(30, () => {
      const keys = [...versions.keys()].filter((key) => key.startsWith(prefix)).sort();
      const all = keys.map((name) => ({ name, ...seen(name, asOf()) })).filter(({ value }) => value !== null);
      const rest = all.filter(({ name }) => name > (cursor ?? ""));
      return { keys: rest.slice(0, 1000), list_complete: rest.length <= 1000, cursor: rest[999]?.name };
    }),
  get: (keys) => after(20, () => new Map(keys.map((key) => [key, seen(key, asOf()).value]))),
  getWithMetadata: (key) => after(20, () => seen(key, asOf())),
  put: (key, value, { metadata } = {}) => after(40, () => write(key, value, metadata)),
  delete: (key) => after(40, () => write(key, null)),
};
let queue = [];
let last = "";
let calls = 0;
const sendBatch = async (messages) => {
  await pause(30);
  calls += 1;
  if (calls % given.refuses === 0) {
    said.refused += 1;
    throw new Error("the Queue takes nothing");
  }
  for (const { body } of messages) {
    said.sent[body.item] = (said.sent[body.item] ?? 0) + 1;
    if (said.sent[body.item] === 1 && body.item < last) said.unordered += 1;
    last = body.item;
    if (chance() < given.drop) continue;
    queue.push({ body, attempts: 0, at: now });
    if (chance() < given.twice) queue.push({ body, attempts: 0, at: now + 300_000 * chance() });
  }
};
const env = { KV, PAGES: { sendBatch }, PROJECT_ID: "p", ...given.vars };

// --- the Worker ---

async function processor(page, _, progress) {
  progress("ask", 10);
  await pause(500 + 1000 * given.seconds * chance());
  if (chance() < given.busy) throw new PageError("not now", "busy", 20);
  if (chance() < given.fails) throw new PageError("no", "broken");
  return { changes: 1, optimization: {} };
}

let running = 0;
async function invoke(messages) {
  running += 1;
  const delivered = messages.map((message) => {
    message.attempts += 1;
    const { body, attempts } = message;
    const end = (delay) => Object.assign(message, { end: delay });
    return { body, attempts, ack: () => end("ack"), retry: ({ delaySeconds }) => end(delaySeconds) };
  });
  let isDead = false;
  const name = (_, operation) => (...args) => (said.operations += 1, isDead ? never : KV[operation](...args));
  const work = consume({ messages: delivered }, { ...env, KV: new Proxy(KV, { get: name }) }, processor);
  const death = chance() < given.dies ? pause(4000 * chance()) : never;
  await Promise.race([work, death]);
  isDead = true;
  running -= 1;
  for (const { end, ...message } of messages) {
    if (end === "ack") continue;
    if (message.attempts > 5) await bury({ messages: [message] }, env);
    else queue.push({ ...message, at: now + 1000 * (end ?? 0) });
  }
}

async function consumers() {
  for (;;) {
    const due = queue.filter(({ at }) => at <= now).slice(0, 5);
    if (due.length && running < 10) {
      queue = queue.filter((message) => !due.includes(message));
      invoke(due);
    } else await pause(100);
  }
}

async function ticks() {
  for (;;) {
    tick(env).catch(() => {}); // the next comes
    await pause(60_000);
  }
}

// --- the batch ---

const pages = Array.from({ length: given.pages }, (_, n) => `page_${String(n).padStart(6, "0")}`);
const at = new Date(now).toISOString().replace("Z", "000Z");
const record = { status: "queued", intent: "run", created: at, page_count: pages.length, counts: {} };
write("batch:p:b", JSON.stringify({ ...record, pages: Object.fromEntries(pages.map((page) => [page, {}])) }), record);
for (const page of pages) {
  const status = { status: "queued", batch_id: "b", updated: at, attempts: 0, queued: { priority: 5, queued_at: at } };
  write(`page:p:${page}`, "{}");
  write(`status:p:${page}`, JSON.stringify(status), small(status));
  write(`queue:p:05:${at.replace(/[^0-9]/g, "")}:${page}`, "{}");
}

now += 60_000; // all of that is to be seen by now
console.log = console.error = () => {};
ticks();
consumers();
const statuses = () => pages.map((page) => JSON.parse(latest(`status:p:${page}`).value));
const [begun, isOpen] = [now, () => latest("batch:p:b").metadata.status.match(/^(queued|processing)$/)];
while (isOpen() && now < begun + 6 * 3_600_000) {
  for (let n = 0; n < 3; n += 1) await new Promise(turn);
  now = Math.min(...timers.map((timer) => timer.at));
  const due = timers.filter((timer) => timer.at <= now);
  timers = timers.filter((timer) => timer.at > now);
  for (const { run } of due) run();
}
const tally = (values) => Object.fromEntries([...Map.groupBy(values, String)].map(([value, all]) => [value, all.length]));
const { status, counts } = latest("batch:p:b").metadata;
const outcome = {
  ...{ minutes: Math.round((now - begun) / 60_000), batch: status, counts, ...said },
  pages: tally(statuses().map((one) => one.error?.code ?? one.status)),
  attempts: tally(statuses().map((one) => one.attempts)),
  sent: tally(Object.values(said.sent)),
  items: [...versions.keys()].filter((key) => key.startsWith("queue:") && latest(key).value !== null).length,
};
process.stdout.write(JSON.stringify(outcome), () => process.exit());
