/**
 * What becomes of a message, from claim to outcome: each case on a KV in memory of its own. Argument:
 * the Worker's folder.
 */

import { LEASE, QUEUED, batch, claimed, deliver, failing, inHand, key, long, message, pages, queued, state, tell, worker, world } from "./world.js";

const { open } = await worker("context");
const { consume } = await worker("consumer");
const { iso, sleep } = await worker("kv");
const { PageError } = await worker("page_error");
const { tick } = await worker("tick");

await tell({
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
   * what would be shown when it is over, is not. Arguments: how long the page takes, and the read
   * before its progress is written; said: the pauses.
   */
  async pause_before_an_outcome() {
    const said = [];
    for (const [milliseconds, reading] of [[0, 0], [350, 0], [350, 100]]) {
      const here = world({ ...inHand(), ...queued(1) }, { WRITE_SECONDS: "0.3" });
      const [put, read, times] = [here.env.KV.put, here.env.KV.getWithMetadata, []];
      here.env.KV.getWithMetadata = async (name) => {
        if (times.length === 1 && name.startsWith("status:")) await sleep(reading);
        return read(name);
      };
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
  /** KV shows the content of an upload before this one: that is not worked on, nor written back. */
  async content_of_an_upload_before() {
    const said = [];
    for (const uploaded of ["2026-11-24T08:00:00.000000Z", "2026-11-24T09:00:00.000000Z", "then", undefined]) {
      const here = world(inHand(), { LAG_SECONDS: "60" });
      here.data.get("status:p:page_1").uploaded = "2026-11-24T09:00:00.000000Z";
      await here.env.KV.put("page:p:page_1", "{}", { metadata: { uploaded } });
      said.push(await deliver(here.env, async () => ({ optimization: 5 })), "optimization" in here.data.get("page:p:page_1"));
    }
    return said;
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
    for (const none of ["", "Infinity", "-5", "soon"]) vars.push({ PAGE_SECONDS: none });
    return [vars.map((some) => open(some).pageSeconds), open({ AGAIN_SECONDS: "" }).againSeconds];
  },
});
