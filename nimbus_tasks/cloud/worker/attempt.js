/**
 * One attempt on one page: whatever a processor does (answer, throw, hang, answer rubbish) becomes
 * an outcome. What nimbus_tasks/worker/attempts.py does in Python.
 *
 * @typedef {object} Outcome
 * @property {string} started
 * @property {string} completed
 * @property {number} duration_ms
 * @property {object[]} entries  for the page's log
 * @property {number} [changes]
 * @property {number | null} [confidence]
 * @property {string} [pageText]  the page record with the optimization in it
 * @property {string} [error]
 * @property {string} [code]
 * @property {number} [retryAfter]
 */

import { isObject, iso, toJson } from "./kv.js";
import { logEntry } from "./logs.js";
import { PageError } from "./page_error.js";

const MAX_STEPS_LOGGED = 200;
const MAX_TEXT = 2000;
const MAX_BYTES = 25 * 1024 * 1024;
const MAX_DEPTH = 200; // the tasks read no record that is nested more deeply (core/wire.py)

export class Attempt {
  /** @param {import("./records.js").Job} job */
  constructor(job) {
    this.job = job;
    this.begun = Date.now();
    this.stepBegun = this.begun;
    /** @type {string | null} */
    this.step = null;
    this.percent = 0;
    this.isOver = false;
    this.leftOut = 0;
    /** @type {any[]} */
    this.entries = [];
    /** @type {() => void} */
    this.end = () => {};
    /** @type {Promise<void>} */
    this.ended = new Promise((done) => (this.end = done));
  }

  /**
   * @param {{value: any, text: string}} page
   * @param {any} env
   * @param {import("./consumer.js").Processor} processor
   * @param {number} seconds
   * @returns {Promise<Outcome>}
   */
  async run(page, env, processor, seconds) {
    const stop = new AbortController();
    /** @type {any} */
    let timer;
    const late = new Promise((_, reject) => {
      timer = setTimeout(
        () => reject(new PageError(`took longer than ${seconds} seconds`, "timeout")),
        1000 * seconds,
      );
    });
    try {
      if (page.value === undefined)
        throw new PageError("its content is not in the store", "missing_page");
      if (!isObject(page.value))
        throw new PageError("its record holds no JSON object", "unreadable_page");
      const report = Object.assign(this.report.bind(this), { signal: stop.signal });
      const work = Promise.resolve().then(() =>
        processor(structuredClone(page.value), env, report),
      );
      return this.succeeded(await Promise.race([work, late]), page);
    } catch (error) {
      return error instanceof PageError
        ? this.failed(error.message, error.code, error.retryAfter)
        : this.failed(wordsOf(error), error instanceof Error ? error.name : "Error");
    } finally {
      clearTimeout(timer);
      stop.abort(); // a processor that hangs in a request is let go
      this.isOver = true;
      this.end();
    }
  }

  /**
   * What a processor gets as `progress`: which step it is at, and how far in percent.
   * @param {string} step
   * @param {number} [percent]
   * @param {string} [message]
   * @param {object} [data]
   */
  report(step, percent, message, data) {
    if (this.isOver) return;
    this.#endStep();
    this.step = String(step).slice(0, 200);
    if (typeof percent === "number" && !Number.isNaN(percent))
      this.percent = Math.min(100, Math.max(0, percent));
    if (this.entries.length >= MAX_STEPS_LOGGED) this.leftOut += 1;
    else
      this.entries.push(
        logEntry(this.step, String(message ?? step).slice(0, MAX_TEXT), { data: loggable(data) }),
      );
  }

  /**
   * @param {string} message
   * @param {string} code
   * @param {number} [retryAfter]  seconds
   * @returns {Outcome}
   */
  failed(message, code, retryAfter) {
    this.#endStep();
    const error = String(message).slice(0, MAX_TEXT);
    const short = String(code).slice(0, 80);
    this.entries.push(
      logEntry(this.step ?? "start", error, {
        level: "error",
        data: { ...this.#facts(), code: short },
      }),
    );
    return {
      ...this.#times(),
      error,
      code: short,
      ...(retryAfter === undefined ? {} : { retryAfter }),
    };
  }

  /**
   * @param {any} result
   * @param {{value: any, text: string}} page
   * @returns {Outcome}
   */
  succeeded(result, page) {
    if (!isObject(result))
      throw new PageError(
        "the processor returned no object with 'changes', 'confidence' and 'optimization'",
        "bad_result",
      );
    const { optimization } = result;
    const changes = result.changes ?? 0;
    if (!Number.isSafeInteger(changes) || changes < 0)
      throw new PageError(`'changes' is ${briefly(changes)}, not a count of changes`, "bad_result");
    const confidence = result.confidence ?? null;
    const usable =
      confidence === null || (typeof confidence === "number" && confidence >= 0 && confidence <= 1);
    if (!usable)
      throw new PageError(
        `'confidence' is ${briefly(confidence)}, not a number from 0 to 1`,
        "bad_result",
      );
    const pageText =
      optimization === undefined || optimization === null
        ? undefined
        : withOptimization(page, optimization);
    this.#endStep();
    const left = this.leftOut ? `; ${this.leftOut} more steps are not logged` : "";
    this.entries.push(
      logEntry("done", (changes === 1 ? "1 change" : `${changes} changes`) + left, {
        data: this.#facts(),
      }),
    );
    return {
      ...this.#times(),
      changes,
      confidence: confidence && Number(confidence.toFixed(4)),
      pageText,
    };
  }

  #facts() {
    return { attempt: this.job.attempt, batch_id: this.job.batch_id };
  }

  #times() {
    const [started, completed] = [iso(this.begun), iso()];
    return { started, completed, duration_ms: Date.now() - this.begun, entries: this.entries };
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
 * @param {{value: any, text: string}} page
 * @param {any} optimization
 */
function withOptimization({ value, text }, optimization) {
  if (depth(optimization) > MAX_DEPTH)
    throw new PageError("'optimization' is nested too deeply", "bad_result");
  const whole = text.trimEnd();
  const joined =
    "optimization" in value || whole === "{}"
      ? toJson({ ...value, optimization })
      : `${whole.slice(0, -1)},"optimization":${toJson(optimization)}}`;
  if (joined.length > MAX_BYTES / 4 && new TextEncoder().encode(joined).length > MAX_BYTES) {
    throw new PageError("page and optimization are too large for the store", "too_large");
  }
  return joined;
}

/** @param {any} value @returns {number} */
function depth(value, above = 0) {
  if (above > MAX_DEPTH || typeof value !== "object" || value === null) return above;
  return Object.values(value).reduce(
    (deepest, part) => Math.max(deepest, depth(part, above + 1)),
    above + 1,
  );
}

/** @param {any} value */
const briefly = (value) => String(JSON.stringify(value)).slice(0, 40);

/** @param {any} error  anything may be thrown */
function wordsOf(error) {
  try {
    return (error instanceof Error ? error.message : String(error)) || "failed without a word";
  } catch {
    return "failed, and its error cannot be shown";
  }
}

/** Data of a log entry, as far as a log should hold it. @param {any} data */
function loggable(data) {
  if (!isObject(data)) return undefined;
  try {
    return toJson(data).length <= MAX_TEXT ? data : { note: toJson(data).slice(0, MAX_TEXT) };
  } catch {
    return undefined;
  }
}
