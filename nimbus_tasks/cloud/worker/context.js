/**
 * What an invocation goes by: the project, its KV and its Queue, and the `vars` of wrangler.jsonc
 * as numbers, with what holds where one is left out or is no such number. Times are seconds.
 */

import { Kv } from "./kv.js";

/** Cloudflare ends an invocation after 15 minutes. */
const INVOCATION_SECONDS = 840;

export function open(env) {
  const number = (name, otherwise, least = 1) => {
    const value = env[name] === "" ? NaN : Number(env[name]);
    return Number.isFinite(value) && value >= least ? value : otherwise;
  };
  // An invocation may do 1,000 operations on KV (50 on the free plan, there with fetches and queue
  // calls). What is left of it decides how much a tick does; the rest is for the next.
  const operations = number("OPERATIONS", 1000, 20);
  // Messages of one invocation of the consumer, which share its operations: its max_batch_size.
  const batchSize = number("BATCH_SIZE", 5);
  return {
    env,
    project: String(env.PROJECT_ID ?? ""),
    kv: new Kv(env.KV, operations),
    operations,
    batchSize,
    // So long a page may take. Messages that come again are worked on one after the other.
    pageSeconds: Math.min(number("PAGE_SECONDS", 120), INVOCATION_SECONDS / batchSize),
    // A claim of which so long nothing was heard is taken up again. It has to outlast the wait in
    // the Queue, for which a tick claims no more than is done in about two minutes.
    leaseSeconds: number("LEASE_SECONDS", 900),
    maxAttempts: number("MAX_ATTEMPTS", 1),
    // Pages that are worked on at once: max_concurrency times max_batch_size of the consumer.
    concurrency: number("CONCURRENCY", 50),
    // After so long a page comes again that could not be worked on, by no fault of its own.
    againSeconds: number("AGAIN_SECONDS", 30, 0),
    // KV takes one write a second for a key.
    writeMs: 1000 * number("WRITE_SECONDS", 1.1, 0),
    // For so long a read of KV may show what was before somebody's write.
    lagSeconds: number("LAG_SECONDS", 60, 0),
  };
}
