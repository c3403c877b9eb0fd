/**
 * The Worker's settings: the `vars` of wrangler.jsonc, as numbers, with what holds where one is
 * left out. Times are seconds.
 *
 * @typedef {object} Env
 * @property {KVNamespace} KV     where the pages are
 * @property {Queue} PAGES        what the tick sends and the consumer gets
 * @property {string} PROJECT_ID  as in .nimbus/project-config.json
 *
 * @param {Record<string, any>} env
 */
export function settings(env) {
  /** @type {(name: string, otherwise: number) => number} */
  const number = (name, otherwise) => {
    const value = Number(env[name] ?? otherwise);
    return Number.isFinite(value) && value >= 0 ? value : otherwise;
  };
  return {
    project: String(env.PROJECT_ID ?? ""),
    // An invocation may do 1,000 operations on KV (50 on the free plan, there with fetches and
    // queue calls). What is left of it decides how much a tick does; the rest is for the next.
    operations: number("OPERATIONS", 1000),
    // So long a page may take. Cloudflare ends an invocation after 15 minutes.
    pageSeconds: number("PAGE_SECONDS", 120),
    // A claim of which so long nothing was heard is taken up again. It has to outlast the wait in
    // the queue, for which the tick claims no more than is done in about two minutes.
    leaseSeconds: number("LEASE_SECONDS", 900),
    maxAttempts: number("MAX_ATTEMPTS", 1),
    // Pages that are worked on at once: max_concurrency times max_batch_size of the consumer.
    concurrency: number("CONCURRENCY", 50),
    // After so long a page comes again that could not be worked on, by no fault of its own.
    againSeconds: number("AGAIN_SECONDS", 30),
    // Messages of one invocation of the consumer, which share its operations: its max_batch_size.
    batchSize: Math.max(1, number("BATCH_SIZE", 5)),
    // For so long a read of KV may show what was before somebody's write.
    lagSeconds: number("LAG_SECONDS", 60),
  };
}
