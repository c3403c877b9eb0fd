/** Posting JSON to a service, and what can go wrong there in words that a report can show. */

import { PageError } from "../page_error.js";

const LATER = [429, 502, 503, 504];
const LATER_SECONDS = 20;
const MAX_CHARACTERS = 25_000_000;

/**
 * @param {string} setting  the name of the address' variable, for the person who reads the error
 * @param {unknown} address
 * @param {Record<string, string>} headers
 * @param {object} body
 * @param {AbortSignal} signal
 * @returns {Promise<string>}
 */
export async function post(setting, address, headers, body, signal) {
  /** @type {Response} */
  let response;
  try {
    response = await fetch(checked(setting, address), {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", ...headers },
      body: JSON.stringify(body),
      redirect: "manual", // a secret goes where it was meant to go, and nowhere else
      signal,
    });
  } catch (error) {
    if (error instanceof PageError) throw error;
    throw new PageError(
      `cannot reach ${setting}: ${/** @type {Error} */ (error).message}`,
      "unreachable",
      LATER_SECONDS,
    );
  }
  if (!response.ok) {
    await response.body?.cancel();
    const retryAfter = LATER.includes(response.status)
      ? secondsOf(response.headers.get("Retry-After"))
      : undefined;
    const code = response.status === 429 ? "rate_limited" : `http_${response.status}`;
    throw new PageError(`${setting} answered ${response.status}`, code, retryAfter);
  }
  if (Number(response.headers.get("Content-Length")) > MAX_CHARACTERS)
    throw new PageError(`${setting} answered more than 25 MB`, "bad_result");
  return response.text();
}

/**
 * @param {string} text
 * @returns {any}
 */
export function answerOf(text) {
  try {
    const answer = JSON.parse(text);
    if (typeof answer === "object" && answer !== null && !Array.isArray(answer)) return answer;
  } catch {
    // as below
  }
  throw new PageError(
    `its answer is no JSON object: ${JSON.stringify(text.slice(0, 60))}`,
    "bad_result",
  );
}

/** @param {string} setting @param {unknown} address */
function checked(setting, address) {
  /** @type {URL} */
  let url;
  try {
    url = new URL(String(address ?? ""));
  } catch {
    throw new PageError(`${setting} in wrangler.jsonc is no address`, "not_configured");
  }
  const isHere = ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
  if (url.protocol === "https:" || (url.protocol === "http:" && isHere)) return url;
  throw new PageError(
    `${setting} has to be https://: pages and a secret go there`,
    "not_configured",
  );
}

/** @param {string | null} header  seconds, or a date */
function secondsOf(header) {
  const seconds = Number(header ?? LATER_SECONDS);
  const given = Number.isNaN(seconds) ? (Date.parse(String(header)) - Date.now()) / 1000 : seconds;
  return Number.isFinite(given) ? Math.max(1, given) : LATER_SECONDS;
}
