/**
 * nimbus-tasks on Cloudflare's own engine: the pages of one project, worked on where its KV is.
 *
 * Every minute a cron trigger claims queued pages and sends them to a Queue (tick.js). The Queue's
 * consumer works on them, as many at once as wrangler.jsonc allows (consumer.js), with processor.js,
 * which is yours to replace. The records are those of the nimbus tasks: upload, status, monitor,
 * retry, cancel and report see no difference. There is no HTTP address: nobody can call it.
 */

import { bury, consume } from "./consumer.js";
import process from "./processor.js";
import { tick } from "./tick.js";

export default {
  /** @param {unknown} _ @param {import("./settings.js").Env} env */
  async scheduled(_, env) {
    console.log(JSON.stringify({ tick: await tick(env) }));
  },

  /** @param {MessageBatch<any>} batch @param {import("./settings.js").Env} env */
  async queue(batch, env) {
    if (batch.queue.endsWith("-dead")) await bury(batch, env);
    else await consume(batch, env, process);
  },
};
