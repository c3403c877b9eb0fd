/**
 * The Queue's consumer: one page a message, from claim to outcome.
 *
 * A message may come twice, late, or while another claim of its page is the current one. So the page
 * is looked at first and at the end, and an outcome counts only for the current claim. What is no
 * fault of the page (KV does not answer, a service asks to wait) is delivered again by the Queue.
 *
 * @typedef {import("./records.js").Job} Job
 * @typedef {(page: any, env: any, progress: Progress) => Promise<any>} Processor
 * @typedef {((step: string, percent?: number, message?: string, data?: object) => void) & {signal: AbortSignal}} Progress
 */

import { Attempt } from "./attempt.js";
import { readHeads } from "./batches.js";
import { claimItems, putInQueue, putStatus } from "./claims.js";
import { Kv, UNREADABLE, isObject, iso, sleep } from "./kv.js";
import { addToLog } from "./logs.js";
import {
  asEnded,
  asQueued,
  asRenewed,
  batchKey,
  held,
  pageKey,
  placeOf,
  statusKey,
} from "./records.js";
import { settings as read } from "./settings.js";

const WRITE_MS = 1100; // KV takes one write a second for a key
/** One more and the Queue gives a message up; the last must say itself what was wrong. It is
 * `max_retries` of wrangler.jsonc. */
const MAX_DELIVERIES = 5;

/**
 * @param {MessageBatch<any>} batch
 * @param {import("./settings.js").Env} env
 * @param {Processor} processor
 */
export async function consume(batch, env, processor) {
  const settings = read(env);
  // One budget for all messages of the invocation, since Cloudflare counts them together.
  const kv = new Kv(env.KV, settings.operations);
  const run = (/** @type {Message<any>} */ message) =>
    handle(message, kv, env, settings, processor);
  const first = batch.messages.filter((message) => message.attempts === 1);
  await Promise.all(first.map(run));
  // What comes again may be what ended an invocation (its memory, its CPU): one after the other, and
  // in any order, so that its neighbours get their turn before it.
  const again = batch.messages.filter((message) => message.attempts > 1);
  for (const message of again.sort(() => Math.random() - 0.5)) await run(message);
}

/**
 * Messages that the Queue has given up: their invocations ended without a word, time after time.
 * @param {MessageBatch<any>} batch
 * @param {import("./settings.js").Env} env
 */
export async function bury(batch, env) {
  const settings = read(env);
  const kv = new Kv(env.KV, settings.operations);
  for (const message of batch.messages) {
    // A group of keys needs nothing: its items are in the queue, and the next ticks hand them out.
    if (!isObject(message.body) || !message.body.page_id) continue;
    const attempt = new Attempt(message.body);
    const words =
      "the Queue gave it up: every invocation that had it ended early (memory, CPU), or KV failed";
    await write(kv, settings, message.body, attempt.failed(words, "worker_lost"), null);
  }
}

/**
 * @param {Message<any>} message
 * @param {Kv} kv
 * @param {import("./settings.js").Env} env
 * @param {ReturnType<typeof read>} settings
 * @param {Processor} processor
 */
async function handle(message, kv, env, settings, processor) {
  try {
    const again =
      message.body?.claim instanceof Array
        ? await claimGroup(message.body.claim, kv, env, settings)
        : await workOn(message, kv, env, settings, processor);
    if (again === undefined) message.ack();
    else message.retry({ delaySeconds: again });
  } catch (error) {
    console.error(JSON.stringify({ message: message.body, error: String(error) }));
    message.retry({ delaySeconds: settings.againSeconds });
  }
}

/**
 * @param {string[]} keys
 * @param {Kv} kv
 * @param {import("./settings.js").Env} env
 * @param {ReturnType<typeof read>} settings
 */
async function claimGroup(keys, kv, env, settings) {
  const heads = [...(await readHeads(kv, settings.project)).values()];
  const cancelled = new Set(
    heads.filter((head) => head.intent === "cancel").map((head) => head.id),
  );
  await claimItems(kv, env, settings, keys, cancelled);
}

/**
 * One page. Returns seconds after which it is to be delivered again, or nothing.
 * @param {Message<any>} message
 * @param {Kv} kv
 * @param {import("./settings.js").Env} env
 * @param {ReturnType<typeof read>} settings
 * @param {Processor} processor
 */
async function workOn(message, kv, env, settings, processor) {
  /** @type {Job} */
  const job = message.body;
  const found = await kv.get(statusKey(settings.project, job.page_id));
  const status = isObject(found) ? held(found, job) : undefined;
  if (status === null) return undefined;
  const isLast = message.attempts >= MAX_DELIVERIES;
  if (status === undefined && !isLast) return settings.againSeconds; // not to be seen yet
  const page = await kv.getWithText(pageKey(settings.project, job.page_id));
  if (page.value === undefined && !isLast && settings.lagSeconds) return settings.againSeconds;

  const attempt = new Attempt(job);
  const showing = show(kv, settings, job, attempt);
  const outcome = await attempt.run(page, env, processor, settings.pageSeconds);
  attempt.isOver = true;
  const lastWrite = await showing;
  if (outcome.retryAfter !== undefined && !isLast) {
    const wait = Math.min(outcome.retryAfter, settings.leaseSeconds / 2);
    await renew(kv, settings, job, attempt, `waits: ${outcome.error}`);
    return Math.ceil(wait);
  }
  await sleep(Math.max(0, lastWrite + WRITE_MS - Date.now()));
  await write(kv, settings, job, outcome, page.metadata);
  return undefined;
}

/**
 * Show step and progress, and keep the lease, at most once a second, until the attempt is over.
 * @param {Kv} kv
 * @param {ReturnType<typeof read>} settings
 * @param {Job} job
 * @param {Attempt} attempt
 * @returns {Promise<number>}  when the status was last written
 */
async function show(kv, settings, job, attempt) {
  let lastWrite = Date.parse(job.claimed);
  let shown = "";
  while (!attempt.isOver) {
    await Promise.race([sleep(WRITE_MS), attempt.ended]);
    const now = `${attempt.step} ${attempt.percent}`;
    const isOld = Date.now() - lastWrite > (1000 * settings.leaseSeconds) / 3;
    if (attempt.isOver || (now === shown && !isOld) || !attempt.step) continue;
    // Two operations each time: some are to be left for the outcome.
    if (kv.left < 50 && !isOld) continue;
    shown = now;
    lastWrite = Date.now();
    try {
      if (!(await renew(kv, settings, job, attempt))) break;
    } catch (error) {
      console.error(JSON.stringify({ job, error: String(error) })); // the outcome matters, not this
    }
  }
  return lastWrite;
}

/**
 * Whether the page is ours still; then others see how far it is.
 * @param {Kv} kv
 * @param {ReturnType<typeof read>} settings
 * @param {Job} job
 * @param {Attempt} attempt
 * @param {string | null} [step]
 */
async function renew(kv, { project, leaseSeconds }, job, attempt, step = attempt.step) {
  const found = await kv.get(statusKey(project, job.page_id));
  const status = isObject(found) ? held(found, job) : null;
  if (status === null) return false;
  const lease = iso(Date.now() + 1000 * leaseSeconds);
  await putStatus(
    kv,
    project,
    job.page_id,
    asRenewed(status, { step, percent: attempt.percent, updated: iso(), lease }),
  );
  return true;
}

/**
 * Write an outcome, if the claim is still the current one: content, log, and status last, so that a
 * page that is done has all of it.
 * @param {Kv} kv
 * @param {ReturnType<typeof read>} settings
 * @param {Job} job
 * @param {import("./attempt.js").Outcome} outcome
 * @param {any} metadata  of the page record
 */
async function write(kv, { project, maxAttempts }, job, outcome, metadata) {
  const found = await kv.get(statusKey(project, job.page_id));
  const status = isObject(found)
    ? held(found, job)
    : found === UNREADABLE
      ? { batch_id: job.batch_id, attempts: job.attempt, status: "processing" }
      : null;
  if (status === null) {
    console.log(JSON.stringify({ refused: job }));
    return;
  }
  const again =
    outcome.error !== undefined &&
    job.attempt < maxAttempts &&
    !(await isCancelled(kv, project, job.batch_id));
  if (outcome.pageText !== undefined)
    await kv.put(pageKey(project, job.page_id), outcome.pageText, metadata);
  await addToLog(kv, project, job.page_id, outcome.entries);
  if (again) {
    await putInQueue(
      kv,
      project,
      job.page_id,
      asQueued(status, { ...placeOf(status), queued_at: iso() }),
    );
  } else {
    await putStatus(kv, project, job.page_id, asEnded(status, outcome));
  }
}

/** @param {Kv} kv @param {string} project @param {string} batch */
async function isCancelled(kv, project, batch) {
  const key = batchKey(project, batch);
  const { keys } = await kv.list(key);
  return keys.some(({ name, metadata }) => name === key && metadata?.intent === "cancel");
}
