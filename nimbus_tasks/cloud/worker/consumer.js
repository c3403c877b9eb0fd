/**
 * The Queue's consumer: a message's page, from its claim to its outcome.
 *
 * A message may come twice, or late, or with another for the same page. So its page is claimed
 * first, and an outcome is written only while that claim stands. What is no fault of the page (KV
 * does not answer, a service asks to wait) sends the message back: the Queue delivers it again.
 *
 * A `job` is a page in our hands: `{page_id, batch_id, uploaded, attempt, claim, claimed, lease}`.
 */

import { Attempt } from "./attempt.js";
import { isCancelled } from "./batches.js";
import { open } from "./context.js";
import { id, pageKey, queuePrefix, statusKey, time } from "./fields.js";
import { isObject, iso, sleep, unlessRefused } from "./kv.js";
import { addToLog, claimPage, putInQueue, putStatus } from "./pages.js";
import { asEnded, asQueued, held, withUsage } from "./records.js";

/**
 * At this delivery the page gets its outcome, good or bad. The further ones that max_retries of
 * wrangler.jsonc allows are for invocations that ended early.
 */
const LAST_DELIVERY = 5;
const SPARE_OPERATIONS = 50; // kept for outcomes: below that, no progress is written

export async function consume({ messages }, env, processor) {
  const cx = open(env); // one for all: Cloudflare counts the operations of an invocation
  const looks = new Map();
  // Its pages are mostly of one batch: one look for all of them whether that is cancelled.
  const isOff = (batch) => {
    if (!looks.has(batch)) looks.set(batch, isCancelled(cx, batch));
    return looks.get(batch);
  };
  const handle = async (message) => {
    let again;
    try {
      again = await workOn(cx, message, processor, isOff);
    } catch (error) {
      logError({ message: message.body, error: String(error) });
      again = cx.againSeconds;
    }
    if (again === undefined) message.ack();
    else message.retry({ delaySeconds: Math.ceil(again) });
  };
  await Promise.all(messages.filter(({ attempts }) => attempts === 1).map(handle));
  // One that comes again may be what ended its invocation (memory, CPU). So these go one after the
  // other, in random order: sooner or later its neighbours have their turn before it.
  const repeated = messages.filter(({ attempts }) => attempts > 1);
  for (const message of repeated.sort(() => Math.random() - 0.5)) await handle(message);
}

/** The dead letters: every invocation that had the message ended early. The page fails. */
export async function bury({ messages }, env) {
  const cx = open(env);
  const words =
    "the Queue gave it up: every invocation that had it ended early (memory, CPU), or KV failed";
  for (const { body } of messages) {
    if (!isMessage(cx, body)) continue;
    await unlessRefused(async () => {
      const { job } = await claimPage(cx, body, (batch) => isCancelled(cx, batch));
      if (job) await writeOutcome(cx, job, new Attempt(job).failed(words, "worker_lost"), null);
    });
  }
}

/** Whether it is of a tick of this project: an item, and the token to claim its page with. */
const isMessage = ({ project }, body) =>
  isObject(body) && id(body.claim) && String(body.item).startsWith(queuePrefix(project));

/** Work on a message's page. Returns in how many seconds it is to come again, if it is to. */
async function workOn(cx, { body, attempts: delivery }, processor, isOff) {
  if (!isMessage(cx, body)) return logError({ unknown_message: body });
  const isLast = delivery >= LAST_DELIVERY;
  const { job, isEarly } = await claimPage(cx, body, isOff);
  if (isEarly && !isLast) return cx.againSeconds;
  if (!job) return undefined;
  const { text, metadata } = await cx.kv.read(pageKey(cx.project, job.page_id));
  // KV may not show yet what was uploaded: there is no content, or that of an upload before.
  const isOld = text === null || time(metadata?.uploaded) < job.uploaded;
  if (isOld && !isLast && cx.lagSeconds) return cx.againSeconds;

  const attempt = new Attempt(job);
  const lastWrite = showProgress(cx, job, attempt); // goes on until the attempt is over
  const outcome = await attempt.run(text, cx.env, processor, cx.pageSeconds);
  await sleep(Math.max(0, (await lastWrite) + cx.writeMs - Date.now()));
  if (outcome.retryAfter === undefined || isLast) return writeOutcome(cx, job, outcome, metadata);
  // The page stays ours meanwhile: it has to come again before its lease is over.
  const isOurs = await renew(cx, job, attempt, `waits: ${outcome.error}`, outcome.usage);
  return isOurs ? Math.min(outcome.retryAfter, cx.leaseSeconds / 2) : undefined;
}

/** Until the attempt is over, write step and progress, and renew the lease; when it last did. */
async function showProgress(cx, job, attempt) {
  let lastWrite = Date.parse(job.claimed);
  let shown = attempt.at;
  while (!attempt.isOver) {
    await Promise.race([sleep(cx.writeMs), attempt.ended]);
    const isNew = attempt.at !== shown && cx.kv.left >= SPARE_OPERATIONS;
    const isDue = Date.now() - lastWrite > (1000 * cx.leaseSeconds) / 3;
    if (attempt.isOver || !(isNew || isDue)) continue;
    shown = attempt.at;
    try {
      // If somebody else has the page now, nothing that the attempt does counts any more.
      if (!(await renew(cx, job, attempt))) attempt.stop.abort();
    } catch (error) {
      logError({ job, error: String(error) }); // the outcome matters, not this
    }
    lastWrite = Date.now();
  }
  return lastWrite;
}

/** If the page is ours still: write how far it is, what it has taken, and a new lease. */
async function renew(cx, job, attempt, step = attempt.step, usage = undefined) {
  const status = await currentStatus(cx, job);
  if (!status) return false;
  const lease = iso(Date.now() + 1000 * cx.leaseSeconds);
  const at = { current_step: step, progress: attempt.percent, lease };
  const renewed = { ...status, updated: iso(), processing: { ...status.processing, ...at } };
  await putStatus(cx, job.page_id, withUsage(renewed, usage));
  return true;
}

/** If the page is ours still: write its outcome. Cut off before the status, it is done again. */
async function writeOutcome(cx, job, outcome, pageMetadata) {
  const status = await currentStatus(cx, job);
  if (!status) return console.log(JSON.stringify({ refused: job }));
  if (outcome.pageText !== undefined)
    await cx.kv.put(pageKey(cx.project, job.page_id), outcome.pageText, pageMetadata);
  await addToLog(cx, job.page_id, outcome.entries);
  const mayTryAgain = outcome.error !== undefined && job.attempt < cx.maxAttempts;
  if (mayTryAgain && !(await isCancelled(cx, job.batch_id)))
    await putInQueue(cx, job.page_id, asQueued(status, outcome.usage, iso()));
  else await putStatus(cx, job.page_id, asEnded(status, outcome));
}

/** The page's status, as held() takes it; null when the page is not ours any more, or gone. */
async function currentStatus({ kv, project }, job) {
  const status = await kv.get(statusKey(project, job.page_id));
  return status === undefined ? null : held(status ?? {}, job); // a damaged one is made anew
}

const logError = (what) => console.error(JSON.stringify(what).slice(0, 500));
