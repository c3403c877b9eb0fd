/**
 * One attempt on one page: whatever a processor does (answer, throw, hang, answer rubbish) becomes
 * an outcome. What nimbus_tasks/worker/attempts.py does in Python.
 *
 * An outcome is `{started, completed, duration_ms, entries, usage}`, entries being those for the
 * page's log, and usage what was taken of a service that counts, `{tokens_in, tokens_out, cost}`;
 * with `{changes, confidence, pageText}`, the page record with the optimization in it, or with
 * `{error, code, retryAfter}`, seconds after which the page may be tried again.
 */

import { isObject, isTooLarge, iso, toJson } from "./kv.js";
import { PageError } from "./page_error.js";
import { logEntry } from "./pages.js";
import { usageFields } from "./records.js";

const MAX_STEPS_LOGGED = 200;
const MAX_TEXT = 2000;
const MAX_DEPTH = 200; // the tasks read no record that is nested more deeply (core/wire.py)

export class Attempt {
  begun = Date.now();
  stepBegun = this.begun;
  step = null;
  percent = 0;
  leftOut = 0;
  entries = [];
  usage = undefined;
  /** Aborted when the attempt is over, or its page taken away: a request that hangs is let go. */
  stop = new AbortController();
  ended = new Promise((done) => this.stop.signal.addEventListener("abort", done));

  constructor(job) {
    this.facts = { attempt: job.attempt, batch_id: job.batch_id };
  }

  get isOver() {
    return this.stop.signal.aborted;
  }

  /** How far it is, in one word. */
  get at() {
    return `${this.step} ${this.percent}`;
  }

  async run(page, env, processor, seconds) {
    let timer;
    const late = new Promise((_, reject) => {
      const error = new PageError(`took longer than ${seconds} seconds`, "timeout");
      timer = setTimeout(() => reject(error), 1000 * seconds);
    });
    try {
      if (page.value === undefined)
        throw new PageError("its content is not in the store", "missing_page");
      if (!isObject(page.value))
        throw new PageError("its record holds no JSON object", "unreadable_page");
      const report = Object.assign(this.report.bind(this), { signal: this.stop.signal });
      const fields = Object.keys(page.value); // as they are before the processor has it
      const work = Promise.resolve().then(() => processor(page.value, env, report));
      return this.succeeded(await Promise.race([work, late]), page.text, fields);
    } catch (error) {
      const { name, code = name } = error instanceof Error ? error : { name: "Error" };
      const { retryAfter, usage } = error instanceof PageError ? error : {};
      this.usage ??= usageFrom(usage);
      return this.failed(error, code, retryAfter);
    } finally {
      clearTimeout(timer);
      this.stop.abort();
    }
  }

  /** What a processor gets as `progress`: which step it is at, and how far in percent. */
  report(step, percent, message, data) {
    if (this.isOver) return;
    this.#endStep();
    this.step = String(step).slice(0, 200);
    if (typeof percent === "number" && !Number.isNaN(percent))
      this.percent = Math.min(100, Math.max(0, percent));
    if (this.entries.length >= MAX_STEPS_LOGGED) this.leftOut += 1;
    else this.#log(this.step, String(message ?? step).slice(0, MAX_TEXT), { data: loggable(data) });
  }

  failed(message, code, retryAfter) {
    this.#endStep();
    const error = wordsOf(message).slice(0, MAX_TEXT);
    const short = wordsOf(code).slice(0, 80);
    const data = { ...this.facts, code: short };
    this.#log(this.step ?? "start", error, { level: "error", data });
    const isLater = typeof retryAfter === "number" && retryAfter >= 0;
    return this.#outcome({ error, code: short, retryAfter: isLater ? retryAfter : undefined });
  }

  /** `text` is the page record, `fields` are the names of its fields. */
  succeeded(result, text, fields) {
    if (!isObject(result))
      bad("the processor returned no object with 'changes', 'confidence' and 'optimization'");
    const { optimization } = result;
    this.usage = usageFrom(result.usage);
    if (this.usage === undefined && result.usage != null)
      bad(`'usage' is ${briefly(result.usage)}, not 'tokens_in', 'tokens_out' and 'cost'`);
    const changes = result.changes ?? 0;
    if (!Number.isSafeInteger(changes) || changes < 0)
      bad(`'changes' is ${briefly(changes)}, not a count of changes`);
    const given = result.confidence ?? null;
    if (given !== null && !(typeof given === "number" && given >= 0 && given <= 1))
      bad(`'confidence' is ${briefly(given)}, not a number from 0 to 1`);
    const confidence = given && Number(given.toFixed(4));
    const pageText =
      optimization == null ? undefined : withOptimization(text, fields, optimization);
    this.#endStep();
    const left = this.leftOut ? `; ${this.leftOut} more steps are not logged` : "";
    const note = (changes === 1 ? "1 change" : `${changes} changes`) + left;
    this.#log("done", note, { data: this.facts });
    return this.#outcome({ changes, confidence, pageText });
  }

  #log(step, message, more) {
    this.entries.push(logEntry(step, message, more));
  }

  #outcome(more) {
    const { begun, entries, usage } = this;
    const times = { started: iso(begun), completed: iso(), duration_ms: Date.now() - begun };
    return { ...times, entries, usage, ...more };
  }

  #endStep() {
    const last = this.entries.at(-1);
    if (last) last.duration_ms ??= Date.now() - this.stepBegun;
    this.stepBegun = Date.now();
  }
}

/**
 * The page record with the optimization in it. Its text is kept and not written anew, where it has
 * none yet: a number that JavaScript cannot hold stays what it was.
 */
function withOptimization(text, fields, optimization) {
  if (depth(optimization) > MAX_DEPTH) bad("'optimization' is nested too deeply");
  const joined =
    fields.includes("optimization") || !fields.length
      ? toJson({ ...JSON.parse(text), optimization })
      : `${text.trimEnd().slice(0, -1)},"optimization":${toJson(optimization)}}`;
  if (isTooLarge(joined))
    throw new PageError("page and optimization are too large for the store", "too_large");
  return joined;
}

function depth(value, above = 0) {
  if (above > MAX_DEPTH || typeof value !== "object" || value === null) return above;
  return Object.values(value).reduce(
    (deepest, part) => Math.max(deepest, depth(part, above + 1)),
    above + 1,
  );
}

function bad(message) {
  throw new PageError(message, "bad_result");
}

/** What a processor says that it has taken, if it says it as it should. */
function usageFrom(given) {
  const usage = usageFields(given);
  const isPriced = given?.cost == null || usage.cost !== undefined;
  const isWhole = usage.tokens_in !== undefined && usage.tokens_out !== undefined;
  return isWhole && isPriced ? usage : undefined;
}

const briefly = (value) => String(JSON.stringify(value)).slice(0, 40);

/** Anything may be thrown. */
function wordsOf(error) {
  try {
    return String(error instanceof Error ? error.message : error) || "failed without a word";
  } catch {
    return "failed, and its error cannot be shown";
  }
}

/** Data of a log entry, as far as a log should hold it. */
function loggable(data) {
  if (!isObject(data)) return undefined;
  try {
    return toJson(data).length <= MAX_TEXT ? data : { note: toJson(data).slice(0, MAX_TEXT) };
  } catch {
    return undefined;
  }
}
