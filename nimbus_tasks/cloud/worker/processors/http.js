/**
 * Posts each page to an address of yours, in any language, and takes what it answers.
 *
 * It gets the page record as JSON (`page_id`, `source_path`, `extraction`: the content map, …) and
 * answers JSON of 10 MB at most: `{"changes": 2, "confidence": 0.8, "optimization": {…}}`, with
 * `usage` if it counts tokens (processor.js), or, for a page that it cannot do, `{"error":
 * {"message": "…", "code": "…"}}`. 429, 502, 503 and 504 mean: later; after the seconds of
 * Retry-After, if it gives them.
 *
 * vars: PROCESSOR_URL; PROCESSOR_SECRET_HEADER, if the secret is to go into a header of that name
 * and not into `Authorization: Bearer`. Secret: PROCESSOR_SECRET.
 */

import { PageError } from "../page_error.js";
import { answerOf, post } from "./post.js";

export default async function process(page, env, progress) {
  progress("http", 0);
  const secret = {};
  if (env.PROCESSOR_SECRET) {
    if (env.PROCESSOR_SECRET_HEADER) secret[env.PROCESSOR_SECRET_HEADER] = env.PROCESSOR_SECRET;
    else secret.Authorization = `Bearer ${env.PROCESSOR_SECRET}`;
  }
  const text = await post("PROCESSOR_URL", env.PROCESSOR_URL, secret, page, progress.signal);
  const { error, ...result } = answerOf(text);
  if (error) {
    const failure = new PageError(error.message ?? error, error.code);
    throw Object.assign(failure, { usage: result.usage });
  }
  return result;
}
