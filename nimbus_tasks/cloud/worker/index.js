/**
 * nimbus-tasks on Cloudflare: the pages of one project, worked on where its KV is. The records are
 * those of the nimbus tasks, which see no difference. It has no address: nobody can call it.
 *
 * Of each page, an upload writes content, status ("queued"), and an *item*: a key in KV, `queue:…`,
 * which sorts by priority and age. Once a minute a *tick* sends the first items to a Cloudflare
 * Queue, as *messages*. The Queue's consumer *claims* a message's page (its status: "processing",
 * with a token, and a *lease*, a time until which nobody else takes the page), deletes the item,
 * works on the page, and writes the outcome ("done" or "failed").
 *
 * KV has no locks, its reads may be a minute old, a message may come twice, and Cloudflare may end
 * an invocation at any line: what looks roundabout here is for one of these four.
 *
 * Read in this order:
 *
 *   processor.js   what is done to a page: yours to replace; processors/ has two to begin with
 *   tick.js        the cron trigger: sends items, takes up lapsed claims, sums up the batches
 *   consumer.js    the Queue's consumer: a page from its message to its outcome
 *   pages.js       the writes to a page's records that both of them make, claiming above all
 *
 * and, when you want to know how, in any order:
 *
 *   attempt.js     whatever a processor does (answer, throw, hang), as an outcome
 *   census.js      lists all pages of the project, and counts them by batch
 *   batches.js     the batch record, and what the pages of a batch add up to
 *   records.js     the status record of a page in each of its states; pure functions
 *   fields.js      keys, and fields as anybody may have written them; pure functions
 *   context.js     `cx` in all files: KV and the settings, from the vars of wrangler.jsonc
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
