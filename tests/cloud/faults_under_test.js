/**
 * What the Worker does where KV shows too little, or refuses, and where something is too much: each
 * case on a KV in memory of its own; what is there afterwards. Argument: the Worker's folder.
 */

import { LEASE, QUEUED, batch, claimed, deliver, failing, inHand, key, long, queuedAt, state, tell, worker, world } from "./world.js";

const { open } = await worker("context");
const { Kv, iso } = await worker("kv");
const { PageError } = await worker("page_error");
const { addToLog } = await worker("pages");
const { Tally, saveSnapshot } = await worker("batches");
const { default: http } = await worker("processors/http");
const { default: llm } = await worker("processors/llm");
const { tick } = await worker("tick");

const CASES = {
  /** Its page is taken away while it waits for a service: the request is let go. */
  async taken_away() {
    const here = world(inHand());
    let isAborted = false;
    const end = await deliver(here.env, async (_, __, progress) => {
      const again = { ...claimed("c2", iso(Date.now() + LEASE)), updated: iso() };
      here.data.set("status:p:page_1", again);
      progress("ask", 10);
      await Promise.race([
        new Promise((done) => setTimeout(done, 3000)),
        new Promise((done) => progress.signal.addEventListener("abort", done)),
      ]);
      isAborted = progress.signal.aborted;
      return {};
    });
    return [end, isAborted, here.data.get("status:p:page_1").processing.claim];
  },
  async tried_again() {
    const here = world(inHand(), { MAX_ATTEMPTS: "2" });
    await deliver(here.env, failing);
    return state(here);
  },
  async not_tried_again_when_cancelled() {
    const here = world(inHand(), { MAX_ATTEMPTS: "2" });
    await deliver(here.env, async () => {
      here.data.set("batch:p:b", batch("cancel"));
      return failing();
    }, 2);
    return state(here);
  },
  async content_not_seen_yet() {
    const here = world(inHand(), { LAG_SECONDS: "60" });
    here.data.delete("page:p:page_1");
    const first = await deliver(here.env, async () => ({}));
    const second = await deliver(here.env, async () => ({}), 5);
    const code = here.data.get("status:p:page_1").error.code;
    const atOnce = world(inHand()); // where reads do not lag, it is not there
    atOnce.data.delete("page:p:page_1");
    return [first, second, code, await deliver(atOnce.env, async () => ({}))];
  },
  async lapsed() {
    const here = world({ "status:p:page_1": claimed("c1", long), "batch:p:b": batch("cancel") });
    await tick(here.env);
    return [state(here), here.sent.length];
  },
  async tick_at_work() {
    const here = world({ "status:p:page_1": QUEUED, [key(1)]: {}, "batch:p:b": batch("run") });
    here.data.set("cloud:p:tick", { until: Date.now() + 100_000, sent: {} });
    return [await tick(here.env), here.sent.length];
  },
  /** An item is seen before its page's status, which still says what was before. */
  async early_item() {
    const now = iso(Date.now() - 1000);
    const item = `queue:p:02:${now.replace(/[^0-9]/g, "")}:page_1`;
    const here = world({ "status:p:page_1": { ...QUEUED, status: "failed" }, [item]: {}, "batch:p:b": batch("run") }, { LAG_SECONDS: "60" });
    await tick(here.env);
    return here.data.has(item);
  },
  /** A page was queued just now, and its item is not to be seen yet. */
  async item_not_seen_yet() {
    const seen = {};
    for (const lag of ["60", "0"]) {
      const now = iso(Date.now() - 1000);
      const status = queuedAt(now, { queued: { priority: 5, queued_at: now } });
      const here = world({ "status:p:page_1": status, "batch:p:b": batch("run") }, { LAG_SECONDS: lag });
      await tick(here.env);
      seen[lag] = here.sent.length;
    }
    return seen;
  },
  /** A cancel comes between the listing of the batches and the snapshot. */
  async cancelled_meanwhile() {
    const here = world({ "batch:p:b": batch("cancel") });
    const head = { id: "b", status: "processing", intent: "run", page_count: 1, counts: {} };
    const tally = new Tally({ states: new Map() });
    tally.add("page_1", { status: "done", updated: long });
    const said = await saveSnapshot(open(here.env), head, tally);
    return [said, here.data.get("batch:p:b").intent, here.puts];
  },
  /** The same, and KV shows the record as it was before: the listing alone knows of the cancel. */
  async cancelled_and_read_too_early() {
    const here = world({ "batch:p:b": batch("cancel") });
    const early = { value: JSON.stringify(batch("run")), metadata: batch("run") };
    here.env.KV.getWithMetadata = async () => early;
    const head = { id: "b", status: "processing", intent: "run", page_count: 1, counts: {} };
    const tally = new Tally({ states: new Map() });
    tally.add("page_1", { status: "done", updated: long });
    return [await saveSnapshot(open(here.env), head, tally), here.data.get("batch:p:b").intent];
  },
  /** It comes while the record is put together, which of 100,000 pages takes a while. */
  async cancelled_while_it_is_put_together() {
    const here = world({ "batch:p:b": batch("run") });
    const head = { id: "b", status: "processing", intent: "run", page_count: 1, counts: {} };
    const states = new Map();
    const tally = new Tally({ states });
    tally.add("page_1", { status: "done", updated: long });
    states.get = () => (here.data.set("batch:p:b", batch("cancel")), "done");
    return [await saveSnapshot(open(here.env), head, tally), here.data.get("batch:p:b").intent];
  },
  /** A tick that Cloudflare ended keeps one other from its work. */
  async tick_cut_off() {
    const here = world({ "status:p:page_1": QUEUED, [key(1)]: {}, "batch:p:b": batch("run") });
    here.env.PAGES.sendBatch = () => new Promise(() => {});
    tick(here.env);
    await new Promise((done) => setTimeout(done, 50));
    const { until } = here.data.get("cloud:p:tick");
    return [60, 120].map((seconds) => until > Date.now() + 1000 * seconds);
  },
  /** A page that is in hand stays so, though its message comes again when its batch is cancelled. */
  async cancelled_between_deliveries() {
    const here = world(inHand({ "batch:p:b": batch("cancel") }));
    await deliver(here.env, async () => ({}), 2);
    return state(here);
  },
  /** Somebody else has the page; or it ended, and was queued by another item since. */
  async messages_that_are_over() {
    const ends = [];
    for (const more of [{ claim: "c2" }, { item: key(1).replace(":05:", ":02:") }]) {
      const values = more.claim ? inHand() : inHand({ "status:p:page_1": QUEUED });
      const here = world({ ...values, [key(1)]: {} });
      const before = here.data.get("status:p:page_1");
      const end = await deliver(here.env, failing, 1, { item: key(1), claim: "c1", ...more });
      ends.push(end, here.data.get("status:p:page_1") === before, here.data.has(key(1)));
    }
    return ends;
  },
  /** The invocation that had it ended after the claim, and before the item was removed. */
  async claim_cut_off() {
    const here = world({ "status:p:page_1": QUEUED, [key(1)]: {}, "batch:p:b": batch("run"), "page:p:page_1": {} });
    const remove = here.env.KV.delete;
    here.env.KV.delete = async () => Promise.reject(new Error("KV DELETE failed: 400"));
    const first = await deliver(here.env, failing);
    here.env.KV.delete = remove;
    const claimed = state(here);
    await deliver(here.env, async () => ({}), 2);
    const { attempts } = here.data.get("status:p:page_1");
    here.data.set("cloud:p:tick", {});
    await tick(here.env);
    await deliver(here.env, failing, 1, here.sent[0].body);
    return [first, claimed, state(here), attempts, here.data.has(key(1))];
  },
  /** What a later batch took over stays in this one, as it was then. */
  async taken_over() {
    const ended = { status: "done", updated: long, attempts: 1, result: { completed: long, changes: 0 } };
    const here = world({
      "status:p:page_1": { ...ended, batch_id: "b" },
      "status:p:page_2": { ...ended, batch_id: "b2" },
      "superseded:p:b:page_2": { status: "failed", batch_id: "b", updated: long, superseded_by: "b2" },
      "superseded:p:b:page_3": { status: "failed", batch_id: "b", updated: long, superseded_by: "b2" }, // of none of its pages
      "batch:p:b": { ...batch("run"), page_count: 2, pages: { page_1: {}, page_2: {} } },
    });
    await tick(here.env);
    const { status, pages, summary } = here.data.get("batch:p:b");
    return [status, pages.page_2.status, summary.completed, summary.failed];
  },
  /** What is left of an invocation's operations is for outcomes, not for steps. */
  async few_operations() {
    const writes = {};
    for (const operations of ["50", "1000"]) {
      const here = world(inHand(), { OPERATIONS: operations, WRITE_SECONDS: "0.01" });
      here.data.get("status:p:page_1").processing.started = iso();
      await deliver(here.env, async (_, __, progress) => {
        progress("ask", 10);
        await new Promise((done) => setTimeout(done, 200));
        return {};
      });
      writes[operations] = here.puts.filter((name) => name.startsWith("status:")).length;
    }
    return writes;
  },
  async refused_for_good() {
    let tries = 0;
    const refuse = async () => {
      tries += 1;
      throw new Error("KV PUT failed: 413 Value length exceeds limit");
    };
    const error = await new Kv({ put: refuse }, 10).put("a", "b").catch(String);
    return [tries, error.includes("413")];
  },
  /** What KV refuses of one page keeps no other from its turn. */
  async lapsed_and_refused() {
    const here = world({ "status:p:page_1": claimed("c1", long), "status:p:page_2": claimed("c2", long), "batch:p:b": batch("run") });
    const put = here.env.KV.put;
    here.env.KV.put = async (name, value, options) => {
      if (name === "status:p:page_1") throw new Error("KV PUT failed: 413 Value length exceeds limit");
      return put(name, value, options);
    };
    const { lapsed } = await tick(here.env);
    return [lapsed, state(here), here.data.get("status:p:page_2").status];
  },
  /** Somebody's fields leave no room: the page ends without them. */
  async status_of_no_room() {
    const here = world(inHand());
    here.data.get("status:p:page_1").theirs = "x".repeat(26 * 1024 * 1024);
    here.data.get("status:p:page_1").processing.host = "h";
    await deliver(here.env, async () => ({ changes: 3 }));
    const { theirs, result } = here.data.get("status:p:page_1");
    return [theirs, result.changes, result.host];
  },
  /** Keys that have more in them than an id: no page, no batch, though they end like one. */
  async keys_that_are_longer() {
    const page = (more) => ({ status: "done", batch_id: "b", updated: long, attempts: 1, ...more });
    const here = world({
      "status:p:page_1": page(),
      "status:p:more:page_1": QUEUED,
      "superseded:p:b:more:page_2": page({ status: "failed" }),
      "batch:p:b": { ...batch("run"), page_count: 2, pages: { page_1: {}, page_2: {} } },
      "batch:p:more:b": batch("cancel"),
    });
    const { sent, snapshots } = await tick(here.env);
    const { status, pages } = here.data.get("batch:p:b");
    return [sent, snapshots, status, pages.page_2.status];
  },
  async throttled() {
    let tries = 0;
    const refuse = async () => {
      tries += 1;
      if (tries < 2) throw new Error("KV PUT failed: 429 Too Many Requests");
    };
    await new Kv({ put: refuse }, 10).put("a", "b");
    return tries;
  },
  /** A log that is as long as a value may be: the oldest entries go. */
  async long_log() {
    const entries = Array.from({ length: 8 }, (_, n) => ({ n, message: "x".repeat(1_000_000) }));
    const here = world({ "logs:p:page_1": { page_id: "page_1", entries } });
    await addToLog(open(here.env), "page_1", [{ n: 8 }]);
    const kept = here.data.get("logs:p:page_1").entries.map(({ n }) => n);
    const logs = [];
    for (const theirs of ["x", "x".repeat(8_000_000)]) {
      here.data.set("logs:p:page_1", { entries: [], theirs });
      await addToLog(open(here.env), "page_1", [{ n: 9 }]);
      logs.push(here.data.get("logs:p:page_1"));
    }
    return [kept.at(-1), kept.length < 8, ...logs];
  },
  async many_steps() {
    const here = world(inHand());
    await deliver(here.env, async (_, __, progress) => {
      for (let n = 0; n < 1000; n += 1) progress(`step ${n}`, n / 10);
      return {};
    });
    const { entries } = here.data.get("logs:p:page_1");
    return [entries.length, entries.at(-1).message];
  },
  async too_large() {
    const here = world(inHand());
    const bytes = "ü".repeat(13 * 1024 * 1024);
    await deliver(here.env, async () => ({ optimization: { bytes } }));
    const deep = world(inHand());
    const optimization = Array.from({ length: 250 }).reduce((inner) => [inner], []); // Python stops at 200
    await deliver(deep.env, async () => ({ optimization }));
    return [here, deep].map(({ data }) => data.get("status:p:page_1").error?.code);
  },
  async refused_by_the_model() {
    const answer = { choices: [{ message: { refusal: "I will not", content: "" } }] };
    globalThis.fetch = async () => Response.json({ ...answer, usage: { prompt_tokens: 7, completion_tokens: 1 } });
    const here = world(inHand(), { LLM_URL: "https://example.com/", LLM_MODEL: "m" });
    await deliver(here.env, llm);
    const { code, usage } = here.data.get("status:p:page_1").error;
    return [code, usage];
  },
  /** Why, as the service says it: the beginning, in one line, and without the secret. */
  async refusals_with_a_reason() {
    const env = { PROCESSOR_URL: "https://example.com/", PROCESSOR_SECRET: "hush" };
    const broken = new ReadableStream({ pull: (stream) => stream.error(new Error("cut")) });
    const errors = [];
    for (const said of ["no page\nfor Bearer hush\u001b[31m " + "x".repeat(5000), "", broken]) {
      globalThis.fetch = async () => new Response(said, { status: 400 });
      const here = world(inHand(), env);
      await deliver(here.env, http);
      const { code, message } = here.data.get("status:p:page_1").error;
      errors.push([code, message.slice(0, 60), message.length]);
    }
    return errors;
  },
  /** A service that does not come to an end, and does not say how much it has to say. */
  async endless_answer() {
    const ends = [];
    for (const processor of [http, llm]) {
      let megabytes = 0;
      const pull = (stream) => {
        megabytes += 1;
        if (megabytes > 60) stream.close();
        else stream.enqueue(new TextEncoder().encode("語".repeat(333_333)));
      };
      globalThis.fetch = async () => new Response(new ReadableStream({ pull }));
      const here = world(inHand(), { PROCESSOR_URL: "https://example.com/", LLM_URL: "https://example.com/" });
      await deliver(here.env, processor);
      ends.push(here.data.get("status:p:page_1").error.code, megabytes < 30);
    }
    return ends;
  },
  /** Tokens of an attempt that is made again count with those of the next. */
  async usage_of_two_attempts() {
    const here = world(inHand(), { MAX_ATTEMPTS: "2" });
    await deliver(here.env, async () => {
      throw Object.assign(new PageError("no"), { usage: { tokens_in: 5, tokens_out: 2, cost: 0.1 } });
    });
    const { spent } = here.data.get("status:p:page_1");
    await tick(here.env);
    await deliver(here.env, async () => ({ usage: { tokens_in: 1, tokens_out: 1, cost: 0.2 } }), 1, here.sent[0].body);
    const { status, result } = here.data.get("status:p:page_1");
    return [spent, status, result.usage];
  },
  async usage_that_is_none() {
    const here = world(inHand());
    await deliver(here.env, async () => ({ usage: { tokens_in: "many" } }));
    return here.data.get("status:p:page_1").error.code;
  },
  /** What it says of its work cannot be used; it was paid for. */
  async usage_of_a_bad_result() {
    const here = world(inHand());
    await deliver(here.env, async () => ({ changes: -1, usage: { tokens_in: 1, tokens_out: 2 } }));
    return here.data.get("status:p:page_1").error.usage;
  },
};

await tell(CASES);
