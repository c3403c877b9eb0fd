/**
 * What ticks claim, mend and sum up, and how much of it at once: each case on a KV in memory of its
 * own. Argument: the Worker's folder.
 */

import { LEASE, QUEUED, batch, claimed, deliver, key, long, queuedAt, tell, worker, world } from "./world.js";

const { Tally, saveSnapshot } = await worker("batches");
const { open } = await worker("context");
const { consume } = await worker("consumer");
const { iso, sleep } = await worker("kv");
const { PageError } = await worker("page_error");
const { claimItems } = await worker("pages");
const { tick } = await worker("tick");

/** Records of so many pages, from page_`first` on. */
const pages = (count, status, first = 1) =>
  Object.fromEntries(Array.from({ length: count }, (_, n) => [`status:p:page_${first + n}`, status]));
const queued = (count, first = 1) => ({
  ...pages(count, QUEUED, first),
  ...Object.fromEntries(Array.from({ length: count }, (_, n) => [key(first + n), {}])),
});
const done = (completed) => ({ status: "done", batch_id: "b", updated: long, attempts: 1, result: { completed, changes: 0 } });
const head = (intent = "run") => ({ id: "b", status: "processing", intent, pageCount: 1, counts: {} });
const tallied = (status) => {
  const tally = new Tally({ states: new Map() });
  tally.add("page_1", status);
  return tally;
};

/** Ticks until `isOver`: how many they were, and the most operations that one of them took. */
async function ticks(here, isOver) {
  let [count, most] = [0, 0];
  while (!isOver() && count < 50) {
    const before = here.spent();
    await tick(here.env);
    count += 1;
    most = Math.max(most, here.spent() - before);
  }
  return { count, most };
}

await tell({
  /** Twice what is worked on at once, or ended within a minute, but what is claimed already. */
  async claims_what_is_done_in_two_minutes() {
    const inHand = { ...claimed("c", iso(Date.now() + LEASE)), updated: iso() };
    const said = [];
    for (const others of [{}, pages(3, inHand, 50), pages(5, done(iso()), 50), pages(5, done("2099-01-01T00:00:00Z"), 50)]) {
      const here = world({ ...queued(30), ...others, "batch:p:b": batch("run") }, { CONCURRENCY: "2" });
      said.push((await tick(here.env)).claimed);
    }
    return said;
  },
  /** A tick after the one that has handed items out, while reads show them, and their pages, still. */
  async handed_out_a_tick_ago() {
    const said = [];
    for (const operations of ["50", "1000"]) {
      const before = { ...queued(60), "batch:p:b": batch("run") };
      const here = world(before, { LAG_SECONDS: "10", OPERATIONS: operations });
      for (let n = 0; n < 2; n += 1) {
        const { claimed, handed } = await tick(here.env);
        said.push(claimed + handed);
        for (const [name, value] of Object.entries(before)) here.data.set(name, value);
      }
    }
    return said;
  },
  /** Reads may show it still; when they cannot any more, it is claimed. */
  async handed_out_before() {
    const said = [];
    for (const [at, items] of [[0, queued(1)], [0, pages(1, QUEUED)], [40_000, queued(1)], [40_000, pages(1, QUEUED)]]) {
      const here = world({ ...items, "batch:p:b": batch("run") }, { LAG_SECONDS: "10" });
      here.data.set("cloud:p:tick", { handed: { [key(1)]: Date.now() - at } });
      said.push((await tick(here.env)).claimed);
    }
    return said;
  },
  async takes_no_more_operations_than_there_are() {
    const lapsed = world({ ...pages(60, claimed("c", long)), "batch:p:b": batch("run") }, { OPERATIONS: "50" });
    const batches = world({}, { OPERATIONS: "50" });
    for (let n = 0; n < 30; n += 1) {
      batches.data.set(`batch:p:b${n}`, batch("run"));
      batches.data.set(`status:p:page_${n}`, { ...done(long), batch_id: `b${n}` });
    }
    const isEnded = () => [...batches.data].every(([name, { status }]) => !name.startsWith("batch:") || status === "completed");
    const isTakenUp = () => ![...lapsed.data.values()].some(({ processing }) => processing?.claim === "c");
    const runs = [await ticks(lapsed, isTakenUp), await ticks(batches, isEnded)];
    return runs.map(({ count, most }) => [count < 50, most <= 50]);
  },
  /** As many messages, and as long ones, as a Queue takes in one call. */
  async sends_what_a_queue_takes() {
    const here = world({ "batch:p:b": batch("run") }, { CONCURRENCY: "5000" });
    for (let n = 0; n < 5000; n += 1) {
      const page = String(n).padStart(60, "0");
      here.data.set(`status:p:page_${page}`, QUEUED);
      here.data.set(key(page), {});
    }
    const { claimed, handed } = await tick(here.env);
    return [claimed + handed, here.sent.length > claimed];
  },
  /** As large as a value may be, by what somebody has put into them: no other has to wait for them. */
  async records_that_kv_refuses() {
    const large = { theirs: "x".repeat(1000) };
    const here = world({
      ...queued(3),
      "status:p:page_3": { ...QUEUED, ...large },
      ...queued(1, 5),
      "status:p:page_5": { ...QUEUED, theirs: "x".repeat(25 * 1024 * 1024) },
      "batch:p:a": { ...batch("run"), ...large },
      "status:p:page_4": { ...done(long), batch_id: "a" },
      "batch:p:b": { ...batch("run"), page_count: 4 },
    });
    here.env.KV.put = async (name, value) => {
      if (value.length > 1000) throw new Error("KV PUT failed: 413 Value length exceeds limit");
      here.data.set(name, JSON.parse(value));
    };
    const { claimed, snapshots } = await tick(here.env);
    const left = [...here.data.keys()].filter((name) => name.startsWith("queue:")).length;
    const states = [3, 5].map((n) => here.data.get(`status:p:page_${n}`).status);
    return [left, snapshots, claimed, here.sent.map(({ body }) => body.page_id), states];
  },
  /** Not the one of a page that is queued at another place by now, nor that of one that has ended. */
  async items_of_no_page_that_waits_there() {
    const here = world({ ...queued(1), ...pages(1, done(long), 2) });
    const items = [key(1).replace(":05:", ":02:"), key(2)];
    const { claimed, used } = await claimItems(open(here.env), items, async () => false);
    const ended = await claimItems(open(here.env), [key(1)], async () => true); // its batch is cancelled
    const { status } = here.data.get("status:p:page_1");
    return [claimed, used.length, ended.claimed, status];
  },
  /** The listing is an old one: by its record the page has ended. */
  async lapsed_by_an_old_listing() {
    const here = world({ ...pages(1, claimed("c", long)), "batch:p:b": batch("run") });
    here.env.KV.get = async (names) => new Map(names.map((name) => [name, JSON.stringify(done(long))]));
    const { lapsed } = await tick(here.env);
    return [lapsed, here.puts.filter((name) => name.startsWith("status:")).length];
  },
  /** Of a batch in whose record others may have written meanwhile, or do. */
  async leaves_a_record_alone() {
    const here = world({ "batch:p:b": { ...batch("cancel"), page_count: 1 } });
    const early = (more) => {
      here.env.KV.list = async () => ({ keys: [{ name: "batch:p:b", metadata: { ...batch("run"), ...more } }], list_complete: true });
      return saveSnapshot(open(here.env), head(), tallied(done(long)));
    };
    const said = [await early()]; // the listing is older than the record
    here.data.set("batch:p:b", batch("run"));
    said.push(await early({ page_count: 2 })); // an upload goes on with it
    said.push(await saveSnapshot(open(here.env), head("upload"), tallied(done(long))));
    here.env.KV.getWithMetadata = async () => ({ value: "[", metadata: batch("run") }); // it is damaged
    said.push(await early());
    return [...said, here.puts.length];
  },
  /** A cancel just now may not be seen yet: not so one in a time to come, nor what a Worker does. */
  async summed_up_when_reads_have_come_up() {
    const said = [];
    for (const [status, updated] of [["cancelled", iso()], ["cancelled", "2099-01-01T00:00:00Z"], ["done", iso()]]) {
      const here = world({ "batch:p:b": batch("cancel") }, { LAG_SECONDS: "60" });
      said.push(await saveSnapshot(open(here.env), head("cancel"), tallied({ status, batch_id: "b", updated })));
    }
    return said;
  },
  /** A service that asks to wait for longer than the lease lasts; a page that has gone meanwhile. */
  async waits_no_longer_than_its_lease() {
    const job = { page_id: "page_1", batch_id: "b", attempt: 1, claim: "c1", claimed: long, lease: long };
    const said = [];
    for (const claim of ["c1", "c2"]) {
      const here = world({ ...pages(1, claimed("c1", long)), "page:p:page_1": {}, "batch:p:b": batch("run") });
      const busy = async () => {
        here.data.set("status:p:page_1", { ...claimed(claim, long), updated: iso() });
        throw new PageError("not now", "busy", 100_000);
      };
      said.push(await deliver(here.env, busy, 1, job));
    }
    return said;
  },
  /** They may be what ended an invocation: one after the other, and each once. */
  async messages_that_come_again() {
    const here = world({ ...pages(3, claimed("c1", iso(Date.now() + LEASE))), "batch:p:b": batch("run") });
    let [begun, atWork, most] = [0, 0, 0];
    const messages = [1, 2, 3].map((n) => {
      here.data.set(`page:p:page_${n}`, {});
      const job = { page_id: `page_${n}`, batch_id: "b", attempt: 1, claim: "c1", claimed: long, lease: long };
      return { body: job, attempts: 2, ack: () => {}, retry: () => {} };
    });
    await consume({ messages }, here.env, async () => {
      [begun, most] = [begun + 1, Math.max(most, (atWork += 1))];
      await sleep(20);
      atWork -= 1;
      return {};
    });
    return [begun, most];
  },
  /** Its status is not to be seen: deleted, or not yet there. The last time it is let go. */
  async page_that_is_not_there() {
    const said = [];
    for (const attempts of [1, 5]) said.push(await deliver(world({}).env, async () => ({}), attempts));
    return said;
  },
});
