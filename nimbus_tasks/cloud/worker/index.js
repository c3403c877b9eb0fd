/**
 * nimbus-tasks on Cloudflare's own engine: the pages of one project, worked on where its KV is.
 *
 * Every minute a cron trigger claims queued pages and sends them to a Queue. The Queue's consumer
 * works on them, as many at once as wrangler.jsonc allows. The records are those of the nimbus
 * tasks: upload, status, monitor, retry, cancel and report see no difference. There is no HTTP
 * address: nobody can call it. To be read in this order:
 *
 *   processor.js   what is done to a page: yours to replace; processors/ has two to begin with
 *   tick.js        the cron trigger: claims what waits, mends what stopped, sums up the batches
 *   census.js      all pages of the project, listed, and what they add up to
 *   pages.js       claiming a page, taking up a claim that has lapsed, writing a page's records
 *   consumer.js    the Queue's consumer: a page from its message to its outcome
 *   attempt.js     whatever a processor does (answer, throw, hang) as an outcome
 *   records.js     the status record in each of its states, and its small form; pure
 *   batches.js     what the pages of a batch add up to, and the batch record
 *   context.js     the settings, from the vars of wrangler.jsonc
 *   kv.js          KV: JSON values, operations counted, throttled writes repeated
 */

import { bury, consume } from "./consumer.js";
import process from "./processor.js";
import { tick } from "./tick.js";

export default {
  async scheduled(_, env) {
    console.log(JSON.stringify({ tick: await tick(env) }));
  },

  async queue(batch, env) {
    if (batch.queue.endsWith("-dead")) await bury(batch, env);
    else await consume(batch, env, process);
  },
};
