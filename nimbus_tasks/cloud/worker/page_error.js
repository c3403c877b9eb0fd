/**
 * Thrown by a processor: this page fails, with a code, a short word that reports group by. With
 * `retryAfter`, in seconds, the page is tried again then, and fails only if that does not help.
 * `usage` may be set, `{tokens_in, tokens_out, cost}`: what the page has taken all the same.
 */
export class PageError extends Error {
  constructor(message, code = "processor_error", retryAfter) {
    super(String(message));
    Object.assign(this, { name: "PageError", code, retryAfter });
  }
}
