/**
 * The Queue's consumer: one page a message, from claim to outcome.
 *
 * A message may come twice, late, or with another for the same page. So the page is claimed first
 * (claimPage in pages.js) and looked at again at the end: an outcome counts only for the current
 * claim. What is no fault of the page (KV does not answer, a service asks to wait) is delivered
 * again by the Queue.
 *
 * In all of these files `cx` is the invocation's context (context.js), `job` a claim, `page` mostly
 * a page's id, and `status` its status record.
 */

import { Attempt } from "./attempt.js";
import { isCancelled } from "./batches.js";
import { open } from "./context.js";
import { id, pageKey, queuePrefix, statusKey } from "./fields.js";
import { isObject, iso, sleep, unlessRefused } from "./kv.js";
import { LATER, addToLog, claimPage, putInQueue, putStatus } from "./pages.js";
import { asEnded, asQueued, held, withUsage } from "./records.js";

/**
 * With this one the page gets its outcome, good or bad. What max_retries of wrangler.jsonc allows
 * beyond it is for invocations that ended early.
 */
const LAST_DELIVERY = 5;
const SPARE = 50; // operations that are left for outcomes: step and progress are not shown for them

export async function consume({ messages }, env, processor) {
  // One context for all messages of the invocation: Cloudflare counts their operations together.
  const cx = open(env);
  const looks = new Map(); // one at a batch: a listing for up to five pages
  const cancelled = (batch) => {
    if (!looks.has(batch)) looks.set(batch, isCancelled(cx, batch));
    return looks.get(batch);
  };
  const run = async (message) => {
    try {
      const again = await workOn(cx, message, processor, cancelled);
      if (again === undefined) message.ack();
      else message.retry({ delaySeconds: Math.ceil(again) });
    } catch (error) {
      logError({ message: message.body, error: String(error) });
      message.retry({ delaySeconds: cx.againSeconds });
    }
  };
  await Promise.all(messages.filter((message) => message.attempts === 1).map(run));
  // What comes again may be what ended an invocation (its memory, its CPU): one after the other,
  // and in any order, so that its neighbours get their turn before it.
  const again = messages.filter((message) => message.attempts > 1);
  for (const message of again.sort(() => Math.random() - 0.5)) await run(message);
}

/** Messages that the Queue gave up: their invocations ended without a word, again and again. */
export async function bury({ messages }, env) {
  const cx = open(env);
  const words =
    "the Queue gave it up: every invocation that had it ended early (memory, CPU), or KV failed";
  for (const { body } of messages) {
    if (!isMessage(cx, body)) continue;
    await unlessRefused(async () => {
      const job = await claimPage(cx, body, (batch) => isCancelled(cx, batch));
      if (isObject(job)) await write(cx, job, new Attempt(job).failed(words, "worker_lost"), null);
    });
  }
}

/** Whether it is of a tick: an item of the queue, and the token to claim its page with. */
const isMessage = ({ project }, body) =>
  isObject(body) && id(body.claim) && String(body.item).startsWith(queuePrefix(project));

/** Work on a message's page. Returns seconds after which it is to come again, or nothing. */
async function workOn(cx, { body, attempts }, processor, cancelled) {
  if (!isMessage(cx, body)) return logError({ unknown_message: body });
  const isLast = attempts >= LAST_DELIVERY;
  const job = await claimPage(cx, body, cancelled);
  if (!isObject(job)) return job === LATER && !isLast ? cx.againSeconds : undefined;
  const { text, metadata } = await cx.kv.read(pageKey(cx.project, job.page_id));
  if (text === null && !isLast && cx.lagSeconds) return cx.againSeconds;

  const attempt = new Attempt(job);
  const showing = show(cx, job, attempt);
  const outcome = await attempt.run(text, cx.env, processor, cx.pageSeconds);
  await sleep(Math.max(0, (await showing) + cx.writeMs - Date.now()));
  if (outcome.retryAfter !== undefined && !isLast) {
    const isOurs = await renew(cx, job, attempt, `waits: ${outcome.error}`, outcome.usage);
    return isOurs ? Math.min(outcome.retryAfter, cx.leaseSeconds / 2) : undefined;
  }
  return write(cx, job, outcome, metadata);
}

/** Show the progress and keep the lease until the attempt is over; when that was last written. */
async function show(cx, job, attempt) {
  let lastWrite = Date.parse(job.claimed);
  let shown = attempt.at;
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
      logError({ job, error: String(error) }); // the outcome matters, not this
    }
  }
  return lastWrite;
}

/** Whether the page is ours still; if so, others see how far it is and what it has taken. */
async function renew(cx, job, attempt, step = attempt.step, usage = undefined) {
  const status = await current(cx, job);
  if (!status) return false;
  const lease = iso(Date.now() + 1000 * cx.leaseSeconds);
  const at = { current_step: step, progress: attempt.percent, lease };
  const renewed = { ...status, updated: iso(), processing: { ...status.processing, ...at } };
  await putStatus(cx, job.page_id, withUsage(renewed, usage));
  return true;
}

/** Write an outcome, if the claim still counts: the status last, so that what is done is whole. */
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

/** The status as held() has it; null when it is gone. One that is damaged is made anew. */
async function current({ kv, project }, job) {
  const status = await kv.get(statusKey(project, job.page_id));
  return status === undefined ? null : held(status ?? {}, job);
}

const logError = (what) => console.error(JSON.stringify(what).slice(0, 500));
