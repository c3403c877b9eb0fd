/**
 * Thrown by a processor: this page fails, with a code that reports can group by.
 *
 * `usage` may be set, `{tokens_in, tokens_out, cost}`: what the page has taken all the same.
 *
 * With `retryAfter` (seconds) it is the service that cannot do it now: the page is tried again
 * then, a few times, and fails only if that does not help.
 */
export class PageError extends Error {
  /** `code` is a short word in lower case. */
  constructor(message, code = "processor_error", retryAfter) {
    super(String(message));
    this.name = "PageError";
    this.code = code;
    this.retryAfter = retryAfter;
  }
}
