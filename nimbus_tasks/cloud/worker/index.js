/**
 * nimbus-tasks on Cloudflare's own engine: the pages of one project, worked on where its KV is. The
 * records are those of the nimbus tasks, which see no difference. There is no address: nobody can
 * call it. Once a minute a tick sends items of the queue to a Cloudflare Queue as messages; the
 * consumer claims each message's page, works on it, and writes the outcome. Read in this order:
 *
 *   processor.js   what is done to a page: yours to replace; processors/ has two to begin with
 *   tick.js        the cron trigger: sends what waits, mends what stopped, sums up the batches
 *   consumer.js    the Queue's consumer: a page from its message to its outcome
 *   pages.js       claiming a page, taking up a claim that has lapsed, writing status and log
 *
 * and, when you want to know how, in any order:
 *
 *   attempt.js     whatever a processor does (answer, throw, hang) as an outcome
 *   census.js      all pages of the project, listed, and what they add up to
 *   batches.js     what the pages of a batch add up to, and the batch record
 *   records.js     the status record in each of its states, and its small form; pure
 *   fields.js      keys, and fields as anybody may have written them; pure
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
