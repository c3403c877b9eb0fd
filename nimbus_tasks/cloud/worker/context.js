/**
 * What an invocation goes by: the project, its KV and its Queue, and the `vars` of wrangler.jsonc
 * as numbers; what is no such number counts as left out. Times are seconds.
 */

import { Kv } from "./kv.js";

export function open(env) {
  const number = (name, otherwise, least = 1) => {
    const value = env[name] === "" ? NaN : Number(env[name]);
    return value >= least && value < Infinity ? value : otherwise;
  };
  // Of an invocation on KV; on the free plan it has 50, with fetches and queue calls.
  const operations = number("OPERATIONS", 1000, 20);
  // An invocation ends after 15 minutes, and may work on all its messages one after the other.
  const longest = 840 / number("BATCH_SIZE", 5);
  return {
    env,
    project: String(env.PROJECT_ID ?? ""),
    kv: new Kv(env.KV, operations),
    operations,
    pageSeconds: Math.min(number("PAGE_SECONDS", 120), longest),
    // A claim of which nothing was heard for so long is taken up again; a message, sent again.
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
