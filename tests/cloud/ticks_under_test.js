/**
 * What ticks send, mend and sum up, and how much of it at once: each case on a KV in memory of its
 * own. Argument: the Worker's folder.
 */

import { LEASE, QUEUED, batch, claimed, deliver, failing, inHand, key, long, message, state, tell, worker, world } from "./world.js";

const { Tally, saveSnapshot } = await worker("batches");
const { open } = await worker("context");
const { bury, consume } = await worker("consumer");
const { iso, sleep } = await worker("kv");
const { PageError } = await worker("page_error");
const { tick } = await worker("tick");

/** Records of so many pages, from page_`first` on. */
const pages = (count, status, first = 1) =>
  Object.fromEntries(Array.from({ length: count }, (_, n) => [`status:p:page_${first + n}`, status]));
const queued = (count, first = 1) => ({
  ...pages(count, QUEUED, first),
  ...Object.fromEntries(Array.from({ length: count }, (_, n) => [key(first + n), {}])),
});
const done = (completed) => ({ status: "done", batch_id: "b", updated: long, attempts: 1, result: { completed, changes: 0 } });
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
    const others = { ...claimed("c", iso(Date.now() + LEASE)), updated: iso() };
    const said = [];
    for (const more of [{}, pages(4, others, 50), pages(5, done(iso()), 50), pages(5, done(long), 50)]) {
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
    const inHand = claimed("c", iso(Date.now() + LEASE));
    const worlds = [pages(1, inHand), queued(1), pages(1, { ...done(long), status: "cancelled", updated: iso() })];
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
    return said.map(({ status, average_time_ms }) => [status, average_time_ms ?? null]);
  },
  /**
   * A service that asks to wait for longer than the lease lasts; where the page is taken away
   * meanwhile; and at the last delivery. What the attempt has taken so far is kept.
   */
  async waits_no_longer_than_its_lease() {
    const said = [];
    for (const [claim, attempts] of [["c1", 1], ["c2", 1], ["c1", 5]]) {
      const here = world(inHand());
      const busy = async () => {
        here.data.set("status:p:page_1", { ...claimed(claim, long), updated: iso() });
        throw Object.assign(new PageError("not now", "busy", 100_000), { usage: { tokens_in: 3, tokens_out: 1 } });
      };
      const usageOf = ({ spent, error } = here.data.get("status:p:page_1")) => spent ?? error?.usage ?? {};
      const end = await deliver(here.env, busy, attempts);
      said.push([end, state(here), usageOf().tokens_in ?? 0]);
    }
    return said;
  },
  /** They may be what ended an invocation: one after the other, and each once. */
  async messages_that_come_again() {
    const here = world({ ...queued(3), "batch:p:b": batch("run") });
    let [begun, atWork, most] = [0, 0, 0];
    const messages = [1, 2, 3].map((n) => {
      here.data.set(`page:p:page_${n}`, {});
      return { body: message(n, `c${n}`), attempts: 2, ack: () => {}, retry: () => {} };
    });
    await consume({ messages }, here.env, async () => {
      [begun, most] = [begun + 1, Math.max(most, (atWork += 1))];
      await sleep(20);
      atWork -= 1;
      return {};
    });
    return [begun, most];
  },
  /** All pages of a batch share one look at whether it was cancelled. */
  async messages_of_one_batch() {
    const here = world({ ...queued(3), "batch:p:b": batch("run") });
    const [list, looks] = [here.env.KV.list, []];
    here.env.KV.list = (given) => (looks.push(given.prefix), list(given));
    const messages = [1, 2, 3].map((n) => ({ body: message(n), attempts: 1, ack: () => {}, retry: () => {} }));
    await consume({ messages }, here.env, failing);
    return looks;
  },
  /** An item whose page's status is not to be seen: not yet there, and the last time let go; or gone. */
  async page_that_is_not_there() {
    const said = [];
    for (const [made, attempts] of [[iso(), 1], [iso(), 5], [long, 1]]) {
      const item = `queue:p:05:${made.replace(/[^0-9]/g, "")}:page_1`;
      const here = world({ [item]: {} }, { LAG_SECONDS: "60" });
      said.push(await deliver(here.env, failing, attempts, { item, claim: "c1" }), here.data.has(item));
    }
    return said;
  },
  async messages_of_nobody() {
    const said = [];
    const other = key(1).replace(":p:", ":pp:");
    for (const body of [null, {}, { ...message(), claim: "" }, { claim: "c1" }, { claim: "c1", item: other }]) {
      const here = world({ ...queued(1), [other]: {} });
      said.push([await deliver(here.env, failing, 1, body), here.data.size, state(here)].join());
    }
    return [...new Set(said)];
  },
  async cancelled_before_it_is_claimed() {
    const here = world({ ...queued(1), "batch:p:b": batch("cancel") });
    return [await deliver(here.env, failing), state(here), here.data.has(key(1))];
  },
  /**
   * KV takes one write a second for a key: so an outcome waits after the claim, and after progress;
   * what would be shown when it is over, is not. Argument: how long the page takes; said: the pauses.
   */
  async pause_before_an_outcome() {
    const said = [];
    for (const milliseconds of [0, 350]) {
      const here = world({ ...inHand(), ...queued(1) }, { WRITE_SECONDS: "0.3" });
      const [put, times] = [here.env.KV.put, []];
      here.env.KV.put = (name, value, options) => {
        if (name.startsWith("status:")) times.push(Date.now());
        return put(name, value, options);
      };
      await deliver(here.env, async (_, __, progress) => {
        progress("ask", 10);
        await sleep(milliseconds);
        return {};
      });
      said.push(times.slice(1).map((at, n) => at - times[n] >= 290));
    }
    return said;
  },
  /** A processor that says nothing: the lease is a lease from the claim, and is renewed meanwhile. */
  async keeps_its_lease() {
    const here = world({ ...inHand(), ...queued(1) }, { LEASE_SECONDS: "1", WRITE_SECONDS: "0.05" });
    const held = [];
    await deliver(here.env, async () => {
      for (const milliseconds of [0, 700]) {
        await sleep(milliseconds);
        const { started, lease } = here.data.get("status:p:page_1").processing;
        held.push(Date.parse(lease) - Date.parse(started));
      }
      return {};
    });
    return [held[0], held[1] >= 1300 && held[1] < 1800];
  },
  /** What is done to the status while its page is worked on: it is refused, deleted, or damaged. */
  async statuses_that_something_happens_to() {
    const said = [];
    for (const happen of ["refuse", "delete", "damage"]) {
      const here = world(inHand(), { WRITE_SECONDS: "0.01" });
      const put = here.env.KV.put;
      here.env.KV.put = async (name, value, options) => {
        if (value.includes('"current_step":"ask"')) throw new Error("KV PUT failed: 400");
        return put(name, value, options);
      };
      const end = await deliver(here.env, async (_, __, progress) => {
        if (happen === "refuse") progress("ask", 10);
        if (happen === "delete") here.data.delete("status:p:page_1");
        if (happen === "damage") here.data.set("status:p:page_1", 5);
        await sleep(50);
        return {};
      });
      said.push([end, state(here) ?? "none"].join());
    }
    return said;
  },
  /** It was queued at its place by nobody's batch. */
  async page_of_no_batch() {
    const here = world({ ...queued(1), "status:p:page_1": { ...QUEUED, batch_id: "" } });
    return [await deliver(here.env, failing), state(here), here.data.has(key(1))];
  },
  /** A writer that does not say where the item of a page lies: it is found, or made, all the same. */
  async page_of_no_place() {
    const said = [];
    const status = { ...QUEUED, queued: undefined };
    for (const more of [{}, { [key(1)]: {} }]) {
      const here = world({ ...pages(1, status), "page:p:page_1": {}, "batch:p:b": batch("run"), ...more });
      await tick(here.env);
      await deliver(here.env, async () => ({}), 1, here.sent[0].body);
      said.push(here.sent.length, here.sent[0].body.item === key(1), state(here));
    }
    return said;
  },
  /** A page that failed, and may be tried again, waits behind the others. */
  async tried_again_behind_the_others() {
    const here = world({ ...queued(2), "page:p:page_1": {}, "batch:p:b": batch("run") }, { MAX_ATTEMPTS: "2" });
    await deliver(here.env, failing);
    const items = [...here.data.keys()].filter((name) => name.startsWith("queue:"));
    return items.sort().map((name) => name.at(-1)).join("");
  },
  /** What its writer has put into the metadata of a page stays there. */
  async page_with_metadata() {
    const here = world(inHand());
    await here.env.KV.put("page:p:page_1", "{}", { metadata: { theirs: 1 } });
    await deliver(here.env, async () => ({ optimization: 5 }));
    const { value, metadata } = await here.env.KV.getWithMetadata("page:p:page_1");
    return [value, metadata.theirs];
  },
  /** An invocation ends after 15 minutes, and may work on all its messages one after the other. */
  async seconds_that_a_page_has() {
    const vars = [{}, { PAGE_SECONDS: "500" }, { PAGE_SECONDS: "500", BATCH_SIZE: "1" }, { BATCH_SIZE: "10" }];
    return vars.map((some) => open(some).pageSeconds);
  },
});
