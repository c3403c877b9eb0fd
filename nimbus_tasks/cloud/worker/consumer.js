/**
 * The Queue's consumer: one page a message, from claim to outcome.
 *
 * A message may come twice, late, or while another claim of its page is the current one. So the
 * page is looked at first and at the end, and an outcome counts only for the current claim. What is
 * no fault of the page (KV does not answer, a service asks to wait) is delivered again by the Queue.
 *
 * In all of these files `cx` is the invocation's context (context.js), `job` a claim as a message
 * carries it (isJob in records.js), `page` mostly a page's id, and `status` its status record.
 */

import { Attempt } from "./attempt.js";
import { isCancelled } from "./batches.js";
import { open } from "./context.js";
import { isObject, iso, sleep } from "./kv.js";
import { addToLog, claimItems, putInQueue, putStatus } from "./pages.js";
import {
  asCancelled,
  asEnded,
  asQueued,
  held,
  isJob,
  pageKey,
  statusKey,
  withUsage,
} from "./records.js";

/**
 * One more and the Queue gives a message up; the last must say itself what was wrong. It is
 * `max_retries` of wrangler.jsonc.
 */
const MAX_DELIVERIES = 5;
/** The step of a page that tells none: who has its message again sees that it has begun. */
const BEGUN = "start";
/** Operations that are left for outcomes: step and progress are not shown for them. */
const SPARE = 50;

export async function consume({ messages }, env, processor) {
  // One context for all messages of the invocation: Cloudflare counts their operations together.
  const cx = open(env);
  const looked = new Map();
  /** One look at a batch an invocation: a listing for up to five pages. */
  const cancelled = (id) => {
    if (!looked.has(id)) looked.set(id, isCancelled(cx, id));
    return looked.get(id);
  };
  const run = async (message) => {
    try {
      const again = await handle(cx, message, processor, cancelled);
      if (again === undefined) message.ack();
      else message.retry({ delaySeconds: Math.ceil(again) });
    } catch (error) {
      console.error(JSON.stringify({ message: message.body, error: String(error) }));
      message.retry({ delaySeconds: cx.againSeconds });
    }
  };
  await Promise.all(messages.filter((message) => message.attempts === 1).map(run));
  // What comes again may be what ended an invocation (its memory, its CPU): one after the other,
  // and in any order, so that its neighbours get their turn before it.
  const again = messages.filter((message) => message.attempts > 1);
  for (const message of again.sort(() => Math.random() - 0.5)) await run(message);
}

/** Messages that the Queue has given up: their invocations ended without a word, again and again. */
export async function bury({ messages }, env) {
  const cx = open(env);
  const words =
    "the Queue gave it up: every invocation that had it ended early (memory, CPU), or KV failed";
  for (const { body } of messages) {
    // A group of keys needs nothing: its items are in the queue, and the next ticks hand them out.
    if (isJob(body)) await write(cx, body, new Attempt(body).failed(words, "worker_lost"), null);
  }
}

/**
 * A message: the keys of queue items to be claimed, or a page. Returns seconds after which it is to
 * be delivered again, or nothing.
 */
async function handle(cx, message, processor, cancelled) {
  const { body } = message;
  if (isJob(body)) return workOn(cx, body, message.attempts, processor, cancelled);
  if (isObject(body) && Array.isArray(body.claim)) {
    const items = body.claim.filter((key) => String(key).startsWith(`queue:${cx.project}:`));
    await claimItems(cx, items, cancelled);
  } else console.error(JSON.stringify({ unknown_message: body }).slice(0, 500));
}

/** Work on a page; `delivery` is how often its message has come, from 1. */
async function workOn(cx, job, delivery, processor, cancelled) {
  const { kv, project, againSeconds } = cx;
  const isLast = delivery >= MAX_DELIVERIES;
  const status = await current(cx, job);
  if (status === null) return undefined;
  if (status === undefined) return isLast ? undefined : againSeconds; // not seen yet, or deleted
  // A tick claims as many pages as are done in two minutes, 5,000 at most, and `cancel` cannot take
  // them back: looked at here, no more of them start, and cost somebody the price of a model.
  if (!status.processing.current_step && (await cancelled(job.batch_id))) {
    await putStatus(cx, job.page_id, asCancelled(status));
    return undefined;
  }
  const page = await kv.getWithText(pageKey(project, job.page_id));
  if (page.value === undefined && !isLast && cx.lagSeconds) return againSeconds;

  const attempt = new Attempt(job);
  const showing = show(cx, job, attempt);
  const outcome = await attempt.run(page, cx.env, processor, cx.pageSeconds);
  const lastWrite = await showing;
  if (outcome.retryAfter !== undefined && !isLast) {
    const isOurs = await renew(cx, job, attempt, `waits: ${outcome.error}`, outcome.usage);
    return isOurs ? Math.min(outcome.retryAfter, cx.leaseSeconds / 2) : undefined;
  }
  await sleep(Math.max(0, lastWrite + cx.writeMs - Date.now()));
  await write(cx, job, outcome, page.metadata);
  return undefined;
}

/**
 * The status as the holder of `job` has to take it: null when the page is his no longer, undefined
 * when there is none. One that is damaged is made anew: the page has to end.
 */
async function current({ kv, project }, job) {
  const found = await kv.get(statusKey(project, job.page_id));
  return found === undefined ? undefined : held(found ?? {}, job);
}

/**
 * Show step and progress, and keep the lease, as often as KV takes it, until the attempt is over.
 * Returns when the status was last written.
 */
async function show(cx, job, attempt) {
  let lastWrite = Date.parse(job.claimed);
  let shown; // also of a processor that says nothing: that it has begun
  while (!attempt.isOver) {
    await Promise.race([sleep(cx.writeMs), attempt.ended]);
    const isNew = attempt.at !== shown && cx.kv.left >= SPARE;
    const isOld = Date.now() - lastWrite > (1000 * cx.leaseSeconds) / 3;
    if (attempt.isOver || !(isNew || isOld)) continue;
    [shown, lastWrite] = [attempt.at, Date.now()];
    try {
      // Taken away, it is let go: nothing that it does counts any more.
      if (!(await renew(cx, job, attempt))) attempt.stop.abort();
    } catch (error) {
      console.error(JSON.stringify({ job, error: String(error) })); // the outcome matters, not this
    }
  }
  return lastWrite;
}

/** Whether the page is ours still; then others see how far it is, and what it has taken. */
async function renew(cx, job, attempt, step = attempt.step ?? BEGUN, usage = undefined) {
  const status = await current(cx, job);
  if (!status) return false;
  const lease = iso(Date.now() + 1000 * cx.leaseSeconds);
  const at = { current_step: step, progress: attempt.percent, lease };
  const processing = { ...status.processing, ...at };
  const renewed = { ...status, updated: iso(), processing };
  await putStatus(cx, job.page_id, withUsage(renewed, usage));
  return true;
}

/**
 * Write an outcome, if the claim is still the current one: content, log, and status last, so that a
 * page that is done has all of it.
 */
async function write(cx, job, outcome, pageMetadata) {
  const { kv, project } = cx;
  const status = await current(cx, job);
  if (!status) return console.log(JSON.stringify({ refused: job }));
  if (outcome.pageText !== undefined)
    await kv.put(pageKey(project, job.page_id), outcome.pageText, pageMetadata);
  await addToLog(cx, job.page_id, outcome.entries);
  const mayTryAgain = outcome.error !== undefined && job.attempt < cx.maxAttempts;
  if (mayTryAgain && !(await isCancelled(cx, job.batch_id)))
    await putInQueue(cx, job.page_id, asQueued(status, outcome.usage, iso()));
  else await putStatus(cx, job.page_id, asEnded(status, outcome));
}
