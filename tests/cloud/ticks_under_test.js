/**
 * What ticks send, mend and sum up, and how much of it at once: each case on a KV in memory of its
 * own. Argument: the Worker's folder.
 */

import { LEASE, QUEUED, batch, claimed, key, long, message, pages, queued, tell, worker, world } from "./world.js";

const { Tally, saveSnapshot } = await worker("batches");
const { open } = await worker("context");
const { bury } = await worker("consumer");
const { iso, sleep } = await worker("kv");
const { tick } = await worker("tick");

const done = (completed) => ({ status: "done", batch_id: "b", updated: long, attempts: 1, result: { completed, changes: 0 } });
const held = () => ({ ...claimed("c", iso(Date.now() + LEASE)), updated: iso() });
const head = (intent = "run") => ({ id: "b", status: "processing", intent, page_count: 1, counts: {} });
const tallied = (...statuses) => {
  const tally = new Tally({ states: new Map() });
  statuses.forEach((status, n) => tally.add(`page_${n + 1}`, status));
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
  /** Three times what is worked on at once, or ended within a minute, but what is in hand already. */
  async sends_what_is_done_in_three_minutes() {
    const said = [];
    for (const more of [{}, pages(4, held(), 50), pages(5, done(iso()), 50), pages(5, done(long), 50)]) {
      const here = world({ ...queued(30), ...more, "batch:p:b": batch("run") }, { CONCURRENCY: "2" });
      said.push((await tick(here.env)).sent);
    }
    return said;
  },
  /** The first of the queue, and of what is missing there, each with a claim of its own, and at the next tick none of them again. */
  async sends_in_order_and_once() {
    const here = world({ ...queued(8), ...pages(1, QUEUED, 9), "batch:p:b": batch("run") }, { CONCURRENCY: "2" });
    const said = [(await tick(here.env)).sent, (await tick(here.env)).sent];
    const bodies = here.sent.map(({ body }) => body);
    return [said, bodies.map(({ item }) => item.at(-1)).join(""), new Set(bodies.map(({ claim }) => claim)).size];
  },
  /**
   * An item that was sent waits still, or its page does whose item is not to be seen: it is sent
   * again after a lease, or when a listing has to show it. By age in seconds, in two ticks each.
   */
  async sent_before() {
    const said = [];
    for (const items of [queued(1), pages(1, QUEUED)]) {
      for (const age of [0, 25, 40, 890, 910]) {
        const here = world({ ...items, "batch:p:b": batch("run") }, { LAG_SECONDS: "10" });
        here.data.set("cloud:p:tick", { sent: { [key(1)]: Date.now() - 1000 * age } });
        said.push([(await tick(here.env)).sent, (await tick(here.env)).sent].join());
      }
    }
    return said;
  },
  /**
   * Of nine items in the Queue, three are wanted there now, as there is less to do. The others are
   * not lost: when it is their turn they are not sent again.
   */
  async sent_before_and_not_wanted_now() {
    const here = world({ ...queued(9), "batch:p:b": batch("run") }, { CONCURRENCY: "1" });
    const sent = Array.from({ length: 9 }, (_, n) => [key(n + 1), Date.now() - 400_000]);
    here.data.set("cloud:p:tick", { sent: Object.fromEntries(sent) });
    const said = [(await tick(here.env)).sent];
    for (const n of [1, 2, 3]) here.data.delete(key(n));
    return [...said, (await tick(here.env)).sent];
  },
  /**
   * A failed page was queued again, and listings show its status as it was before: its batch is not
   * called failed, which no tick would correct when it is done. It was sent; it waits; or nothing of
   * it is to be seen but that its batch is retried, which was long ago, or just now.
   */
  async retried_and_listed_as_before() {
    const made = iso(Date.now() - 30_000);
    const item = `queue:p:02:${made.replace(/[^0-9]/g, "")}:page_1`;
    const failed = { ...QUEUED, status: "failed", queued: undefined };
    const retried = (rev) => ({ "batch:p:b": { ...batch("retry"), status: "retrying", rev } });
    const worlds = [
      { ...retried(long), "cloud:p:tick": { sent: { [item]: Date.now() - 20_000 } } },
      ...[{ ...retried(long), [item]: {} }, retried(long), retried(made)],
    ];
    const said = [];
    for (const values of worlds) {
      const here = world({ ...pages(1, failed), ...values }, { LAG_SECONDS: "60" });
      const status = async () => (await here.env.KV.getWithMetadata("batch:p:b")).metadata.status;
      await tick(here.env);
      said.push(await status());
      here.data.delete(item);
      here.data.get("batch:p:b").rev = long;
      here.data.set("status:p:page_1", { ...done(iso()), updated: iso() });
      await tick(here.env);
      said.push(await status());
    }
    return said;
  },
  /** What a tick remembers may be lost, or rubbish: then it works, and sends, as if it knew nothing. */
  async memories_that_are_none() {
    const later = Date.now() + 3_600_000;
    const memories = [
      ...[undefined, {}, { sent: "all" }, { sent: [key(1)] }, { sent: { [key(1)]: "now" } }, { sent: { [key(1)]: null } }],
      ...[{ sent: { [key(1)]: later } }, { until: later }, { quiet: later }, { until: "later" }, { until: 0 }],
    ];
    const said = [];
    for (const memory of memories) {
      const here = world({ ...queued(1), "batch:p:b": batch("run") });
      if (memory) here.data.set("cloud:p:tick", memory);
      said.push((await tick(here.env)).sent);
    }
    return said;
  },
  /** Nothing happens in it: it is looked at again after ten minutes, or when something is queued. */
  async quiet() {
    const here = world({ "batch:p:b": { ...batch("upload"), status: "uploading" } });
    const said = [(await tick(here.env)).sent, await tick(here.env)];
    const { quiet } = here.data.get("cloud:p:tick");
    said.push(quiet > Date.now() + 590_000 && quiet <= Date.now() + 600_000);
    here.data.get("cloud:p:tick").quiet += 3_600_000; // by a clock that was wrong
    said.push((await tick(here.env)).sent);
    for (const [name, value] of Object.entries(queued(1))) here.data.set(name, value);
    return [...said, (await tick(here.env)).sent];
  },
  /**
   * Something may happen in it unasked: a page in hand ends; a page that was sent is in hand by now,
   * which a listing does not show yet; a record is to be written when reads have come up.
   */
  async not_quiet() {
    const worlds = [pages(1, held()), queued(1), pages(1, { ...done(long), status: "cancelled", updated: iso() })];
    const said = [];
    for (const values of worlds) {
      const here = world({ ...values, "batch:p:b": batch("run") }, { LAG_SECONDS: "60" });
      await tick(here.env);
      here.data.delete(key(1));
      const { snapshots } = await tick(here.env);
      said.push(snapshots, here.data.get("cloud:p:tick").quiet === undefined);
    }
    return said;
  },
  /** All has ended: two listings, and nothing written. Not so where an item waits. */
  async at_rest() {
    const ended = { ...batch("run"), status: "completed" };
    const said = [];
    for (const more of [{}, queued(1, 2)]) {
      const here = world({ ...pages(1, done(long)), "batch:p:b": ended, ...more });
      const { idle, sent } = await tick(here.env);
      said.push([idle ?? sent, here.spent() > 2, here.puts.length > 0]);
    }
    return said;
  },
  /** It was called completed too early: a page of it is in hand. One that is over is left alone. */
  async called_over() {
    const [over, page] = [{ ...batch("run"), status: "completed" }, { ...done(long), batch_id: "c" }];
    const here = world({ ...pages(1, held()), [key(2)]: {}, "batch:p:b": over, "batch:p:c": over, ...pages(1, page, 3) });
    await tick(here.env);
    const { metadata } = await here.env.KV.getWithMetadata("batch:p:b"); // the pages come with the next
    return [metadata.status, metadata.created === long, here.puts.includes("batch:p:c")];
  },
  /** A tick that Cloudflare ends has told the next what was sent before it. */
  async sent_before_a_tick_that_is_cut_off() {
    const here = world({ ...queued(3), "batch:p:b": batch("run") }, { CONCURRENCY: "1" });
    await tick(here.env);
    const { sent } = here.data.get("cloud:p:tick");
    here.env.KV.list = async ({ prefix }) =>
      prefix.startsWith("status:") ? new Promise(() => {}) : { keys: [{ name: key(1) }], list_complete: true };
    tick(here.env);
    await sleep(50);
    const left = here.data.get("cloud:p:tick");
    return [left.until > 0, Object.keys(left.sent).length === 3, JSON.stringify(left.sent) === JSON.stringify(sent)];
  },
  async takes_no_more_operations_than_there_are() {
    const lapsed = world({ ...pages(60, claimed("c", long)), "batch:p:b": batch("run") }, { OPERATIONS: "50" });
    const others = Object.entries(queued(250, 100)).map(([name, value]) => [name, { ...value, batch_id: "gone" }]);
    const batches = world(Object.fromEntries(others), { OPERATIONS: "50", CONCURRENCY: "100" });
    for (let n = 0; n < 30; n += 1) {
      batches.data.set(`batch:p:b${n}`, batch("run"));
      batches.data.set(`status:p:page_${n}`, { ...done(long), batch_id: `b${n}` });
    }
    const isEnded = () => [...batches.data].every(([name, { status }]) => !name.startsWith("batch:") || status === "completed");
    const isTakenUp = () => ![...lapsed.data.values()].some(({ processing }) => processing?.claim === "c");
    const runs = [await ticks(lapsed, isTakenUp), await ticks(batches, isEnded)];
    return runs.map(({ count, most }) => [count < 50, most <= 50]);
  },
  /** As many messages, and as long ones, as a Queue takes in one call; no more than 5,000. */
  async sends_what_a_queue_takes() {
    const here = world({ "batch:p:b": batch("run") }, { CONCURRENCY: "5000" });
    for (let n = 0; n < 5100; n += 1) {
      const page = String(n).padStart(60, "0");
      here.data.set(`status:p:page_${page}`, QUEUED);
      here.data.set(key(page), {});
    }
    const { sent } = await tick(here.env);
    return [sent, new Set(here.sent.map(({ body }) => body.item)).size];
  },
  /** What KV refuses of one batch, or of one page that is given up, keeps no other from its turn. */
  async records_that_kv_refuses() {
    const large = { theirs: "x".repeat(1000) };
    const here = world({
      ...queued(2),
      "status:p:page_1": { ...QUEUED, ...large },
      "batch:p:a": { ...batch("run"), ...large },
      "status:p:page_4": { ...done(long), batch_id: "a" },
      "batch:p:b": { ...batch("run"), page_count: 2 },
    });
    const put = here.env.KV.put;
    here.env.KV.put = async (name, value, options) => {
      if (value.length > 1000) throw new Error("KV PUT failed: 413 Value length exceeds limit");
      return put(name, value, options);
    };
    const { snapshots } = await tick(here.env);
    await bury({ messages: [{ body: 5 }, { body: message(4) }, ...here.sent] }, here.env);
    const codes = [1, 2].map((n) => here.data.get(`status:p:page_${n}`).error?.code ?? null);
    return [snapshots, here.sent.length, codes];
  },
  /** Of nobody's hand for a lease: queued again as it was, and the third time failed; its log says so. */
  async lapses() {
    const said = [];
    for (const lapses of [undefined, 1, 2]) {
      const here = world({ ...pages(1, { ...claimed("c", long), queued: QUEUED.queued, lapses }), "batch:p:b": batch("run") });
      await tick(here.env);
      const status = here.data.get("status:p:page_1");
      const { entries } = here.data.get("logs:p:page_1");
      said.push([status.lapses, status.status, here.data.has(key(1)), status.error?.code, entries[0].data.lapses].join());
    }
    return said;
  },
  /** The listing is an old one: by its record the page has ended. */
  async lapsed_by_an_old_listing() {
    const here = world({ ...pages(1, claimed("c", long)), "batch:p:b": batch("run") });
    const read = here.env.KV.getWithMetadata;
    here.env.KV.getWithMetadata = async (name) =>
      name.startsWith("status:") ? { value: JSON.stringify(done(long)), metadata: null } : read(name);
    const { lapsed } = await tick(here.env);
    return [lapsed, here.puts.filter((name) => name.startsWith("status:")).length];
  },
  /** Of a batch in whose record others may have written meanwhile, or do. */
  async leaves_a_record_alone() {
    const here = world({ "batch:p:b": batch("cancel") });
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
    here.env.KV.getWithMetadata = async () => ({ value: "[", metadata: null });
    said.push(await saveSnapshot(open(here.env), head(), new Tally()));
    return [...said, here.puts.length];
  },
  /** A cancel just now may not be seen yet: not so one in a time to come, nor what a Worker does. */
  async summed_up_when_reads_have_come_up() {
    const said = [];
    const page = (status, updated = iso()) => ({ status, batch_id: "b", updated });
    const [off, older] = [page("cancelled"), page("cancelled", long)];
    for (const some of [[off], [off, older], [older], [page("cancelled", "2099-01-01T00:00:00Z")], [page("done")], [page("processing")]]) {
      const here = world({ "batch:p:b": { ...batch("cancel"), page_count: some.length } }, { LAG_SECONDS: "60" });
      const asked = { ...head("cancel"), page_count: some.length };
      said.push(await saveSnapshot(open(here.env), asked, tallied(...some)));
    }
    return said;
  },
  /** The time is that of pages that are done; cancelled is what no later batch took over. */
  async summed_up() {
    const failed = { status: "failed", duration_ms: 500 };
    const took = { status: "done", duration_ms: 100, superseded_by: "b2" };
    const said = [[took, took, failed], [failed], [took, { status: "cancelled" }]].map((some) =>
      tallied(...some).snapshot({ intent: "run", page_count: some.length }),
    );
    return said.map(({ status, average_time_ms }) => `${status} ${average_time_ms}`);
  },
});
