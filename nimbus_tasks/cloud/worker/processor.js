/**
 * What is done to a page: the default export, `async function process(page, env, progress)`. Put
 * your own in place of the last line, or change what it names.
 *
 * - `page` is a copy of the page record: `page_id`, `source_path`, `extraction` (the content map).
 * - `env` has the vars of wrangler.jsonc and the secrets.
 * - `progress(step, percent, message, data)` says how far it is: others see step and percent, and
 *   the page's log gets an entry. All but `step` may be left out; `data` is an object of details.
 * - `progress.signal` is an AbortSignal: aborted when the page has taken PAGE_SECONDS, or is taken
 *   away. Nothing that is returned after that counts, so give it to each request:
 *   `fetch(address, { signal: progress.signal })`.
 *
 * It returns an object, of which all may be left out:
 *
 * - `changes`: how many, a whole number from 0;
 * - `confidence`: a number from 0 to 1;
 * - `optimization`: any JSON, to be stored in the page record;
 * - `usage`: `{tokens_in, tokens_out}`, and `cost` if it is known: metrics and reports add them up.
 *
 * An error that it throws fails the page:
 *
 * - `new PageError("what is wrong", "code")`, of ./page_error.js: reports group by the code. Of any
 *   other error the name is the code.
 * - `new PageError("not now", "code", seconds)`: a service cannot do it now. The page comes again
 *   after so long, four times at most, and fails only then.
 *
 * With MAX_ATTEMPTS above 1, a page that has failed is queued again. At times a page is processed
 * twice, though one outcome counts: what is done elsewhere has to bear that.
 */
export { default } from "./processors/@PROCESSOR@.js";
