/**
 * One attempt on one page: whatever a processor does (answer, throw, hang, answer rubbish) becomes
 * an outcome. What nimbus_tasks/worker/attempts.py does in Python.
 *
 * An outcome is `{started, completed, duration_ms, usage, entries}`, entries being those for the
 * page's log; with `{changes, confidence, pageText}`, the page record with the optimization in it,
 * or with `{error, code, retryAfter}`, seconds after which the page may be tried again.
 */

import { isObject, isTooLarge, iso, parse, toJson } from "./kv.js";
import { PageError } from "./page_error.js";
import { usageFields } from "./records.js";

const MAX_STEPS_LOGGED = 200;
const MAX_TEXT = 2000;
const MAX_DEPTH = 200; // the tasks read no record that is nested more deeply (core/wire.py)

export class Attempt {
  begun = Date.now();
  step = null;
  percent = 0;
  entries = [];
  leftOut = 0;
  usage = undefined;
  /** Aborted when the attempt is over, or its page taken away: a request that hangs is let go. */
  stop = new AbortController();
  ended = new Promise((done) => this.stop.signal.addEventListener("abort", done));

  constructor({ attempt, batch_id }) {
    this.facts = { attempt, batch_id };
  }

  get isOver() {
    return this.stop.signal.aborted;
  }

  /** How far it is, in one word. */
  get at() {
    return `${this.step} ${this.percent}`;
  }

  /** `text` is the page record. */
  async run(text, env, processor, seconds) {
    let timer;
    const late = new Promise((_, reject) => {
      const error = new PageError(`took longer than ${seconds} s`, "timeout");
      timer = setTimeout(() => reject(error), 1000 * seconds);
    });
    try {
      if (text === null) throw new PageError("its content is not in the store", "missing_page");
      const page = parse(text);
      if (!page) throw new PageError("its record holds no JSON object", "unreadable_page");
      const report = Object.assign(this.report.bind(this), { signal: this.stop.signal });
      const work = Promise.resolve().then(() => processor(page, env, report));
      return this.succeeded(await Promise.race([work, late]), text);
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
    this.step = String(step).slice(0, 200);
    if (Number.isFinite(percent)) this.percent = Math.min(100, Math.max(0, percent));
    if (this.entries.length >= MAX_STEPS_LOGGED) this.leftOut += 1;
    else this.#log("info", this.step, String(message ?? step).slice(0, MAX_TEXT), loggable(data));
  }

  failed(message, code, retryAfter) {
    const error = wordsOf(message).slice(0, MAX_TEXT);
    const short = wordsOf(code).slice(0, 80);
    this.#log("error", this.step ?? "start", error, { ...this.facts, code: short });
    const isLater = typeof retryAfter === "number" && retryAfter >= 0;
    return this.#outcome({ error, code: short, retryAfter: isLater ? retryAfter : undefined });
  }

  succeeded(result, text) {
    if (!isObject(result))
      bad("the processor returned no object with 'changes', 'confidence' and 'optimization'");
    const { optimization, usage } = result;
    const [changes, sure] = [result.changes ?? 0, result.confidence ?? null];
    this.usage = usageFrom(usage);
    if (this.usage === undefined && usage != null)
      bad(`'usage' is ${briefly(usage)}, not 'tokens_in', 'tokens_out' and 'cost'`);
    if (!Number.isSafeInteger(changes) || changes < 0)
      bad(`'changes' is ${briefly(changes)}, not a count of changes`);
    if (sure !== null && !(typeof sure === "number" && sure >= 0 && sure <= 1))
      bad(`'confidence' is ${briefly(sure)}, not a number from 0 to 1`);
    const confidence = sure && Number(sure.toFixed(4));
    const pageText = withOptimization(text, optimization);
    const left = this.leftOut ? `; ${this.leftOut} more steps are not logged` : "";
    this.#log("info", "done", `${changes} change${changes === 1 ? "" : "s"}${left}`, this.facts);
    return this.#outcome({ changes, confidence, pageText });
  }

  /** An entry of the page's log; the one before has taken until now. */
  #log(level, step, message, data) {
    const last = this.entries.at(-1);
    if (last) last.duration_ms = Date.now() - Date.parse(last.timestamp);
    this.entries.push({ timestamp: iso(), level, step, message, data });
  }

  #outcome(more) {
    const { begun, entries, usage } = this;
    const times = { started: iso(begun), completed: iso(), duration_ms: Date.now() - begun };
    return { ...times, entries, usage, ...more };
  }
}

/**
 * The page record with the optimization in it, if there is one. Its text is kept and not written
 * anew, where it has none yet: a number that JavaScript cannot hold stays what it was.
 */
function withOptimization(text, optimization) {
  if (optimization == null) return undefined;
  if (depth(optimization) > MAX_DEPTH) bad("'optimization' is nested too deeply");
  const page = JSON.parse(text); // anew: what the processor had, it may have changed
  const joined =
    "optimization" in page || !Object.keys(page).length
      ? toJson({ ...page, optimization })
      : `${text.trimEnd().slice(0, -1)},"optimization":${toJson(optimization)}}`;
  if (isTooLarge(joined))
    throw new PageError("page and optimization are too large for the store", "too_large");
  return joined;
}

function depth(value, above = 0) {
  if (above > MAX_DEPTH || typeof value !== "object" || value === null) return above;
  const parts = Object.values(value);
  return parts.reduce((deepest, part) => Math.max(deepest, depth(part, above + 1)), above + 1);
}

/** What a processor says that it has taken, if it says it as it should. */
function usageFrom(given) {
  const { tokens_in, tokens_out, cost } = usageFields(given);
  const isPriced = given?.cost == null || cost !== undefined;
  return tokens_in >= 0 && tokens_out >= 0 && isPriced ? usageFields(given) : undefined;
}

function bad(message) {
  throw new PageError(message, "bad_result");
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
  try {
    const text = isObject(data) ? toJson(data) : "{}";
    if (text.length > MAX_TEXT) return { note: text.slice(0, MAX_TEXT) };
    return text === "{}" ? undefined : data;
  } catch {
    return undefined;
  }
}
