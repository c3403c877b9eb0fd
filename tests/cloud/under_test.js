/**
 * The Worker as `nimbus.cloud.init` writes it, for many projects at once, observed.
 *
 * A tick is for the project that the cron expression names; its messages carry that name. What a
 * test sets under `test:{project}` takes the place of vars. Every operation on KV and the Queue is
 * counted; GET /counts?project= tells. `lose` are paths of pages of which nothing is heard after the claim, and
 * `kill` of those that end their whole invocation; `hold` keeps all messages from the Queue. With
 * `odd` the processor is one that no service could be.
 */

import { bury, consume } from "./consumer.js";
import { open } from "./context.js";
import { claimPage } from "./pages.js";
import process from "./processor.js";
import llm from "./processors/llm.js";
import { tick } from "./tick.js";

const counts = {};
const ODD = {
  silent: async () => (await new Promise((done) => setTimeout(done, 2500)), { changes: 1 }),
  wordless: async () => {
    const never = () => {
      throw new Error("no words");
    };
    throw Object.assign(new Error(), { name: { toString: never }, message: { toString: never } });
  },
  greedy: async (page) => {
    for (const field in page) delete page[field];
    return { optimization: { mine: true } };
  },
};

async function environment(env, project) {
  const kept = JSON.parse((await env.KV.get(`test:${project}`)) ?? "{}");
  const tally = (counts[project] ??= {});
  const count = (name) => (tally[name] = (tally[name] ?? 0) + 1);
  const counted =
    (target, name) =>
    (...given) => {
      count(name);
      return target[name](...given);
    };
  const KV = new Proxy(env.KV, { get: (target, name) => counted(target, name) });
  const PAGES = {
    sendBatch: (batch) => {
      count("sendBatch");
      if (kept.refuse) throw new Error("the Queue takes nothing");
      if (kept.hold) return undefined;
      return env.PAGES.sendBatch(batch.map((one) => ({ ...one, body: { ...one.body, project } })));
    },
  };
  return { ...env, ...kept, KV, PAGES, PROJECT_ID: project };
}

async function isAmong(env, project, paths, body) {
  if (!paths?.length) return false;
  const page = JSON.parse(await env.KV.get(`page:${project}:${body.item.split(":").at(-1)}`));
  return paths.includes(page.source_path);
}

export default {
  async scheduled(event, env) {
    const done = await tick(await environment(env, event.cron));
    await env.KV.put(`tick:${event.cron}`, JSON.stringify(done));
  },

  async queue(batch, env) {
    const projects = Map.groupBy(batch.messages, (message) => message.body?.project);
    for (const [project, messages] of projects) {
      const theirs = await environment(env, project);
      if (batch.queue.endsWith("-dead")) {
        await bury({ messages }, theirs);
        continue;
      }
      const kept = [];
      for (const message of messages) {
        if (await isAmong(env, project, theirs.kill, message.body))
          throw new Error("the invocation has ended");
        if (await isAmong(env, project, theirs.lose, message.body))
          await claimPage(open(theirs), message.body, () => false);
        else kept.push(message);
      }
      await consume({ messages: kept }, theirs, ODD[theirs.odd] ?? (theirs.LLM_URL ? llm : process));
    }
  },

  async fetch(request, env) {
    const url = new URL(request.url);
    const project = url.searchParams.get("project");
    if (url.pathname === "/counts") return Response.json(counts[project] ?? {});
    await env.PAGES.sendBatch(
      (await request.json()).map((body) => ({ body: { ...body, project }, contentType: "json" })),
    );
    return new Response("sent");
  },
};
