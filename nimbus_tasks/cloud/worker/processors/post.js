/** Posting JSON to a service, and what can go wrong there in words that a report can show. */

import { PageError } from "../page_error.js";

const LATER = [429, 502, 503, 504];
const LATER_SECONDS = 20; // where a service does not say
/** Five pages share an invocation's 128 MB. */
const MAX_BYTES = 10_000_000;
const REASON_CHARACTERS = 200; // of what a refusal says

/** `setting` is the name of the address' variable, for the person who reads the error. */
export async function post(setting, address, headers, body, signal) {
  let response, text, reason;
  try {
    response = await fetch(checked(setting, address), {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: "application/json", ...headers },
      body: JSON.stringify(body),
      redirect: "manual", // a secret goes where it was meant to go, and nowhere else
      signal,
    });
    if (response.ok) text = await bounded(setting, response.body);
    else reason = await reasonIn(response.body, Object.values(headers)).catch(() => "");
  } catch (error) {
    if (error instanceof PageError) throw error;
    throw new PageError(`cannot reach ${setting}: ${error.message}`, "unreachable", LATER_SECONDS);
  }
  if (response.ok) return text;
  const { status, headers: said } = response;
  const retryAfter = LATER.includes(status) ? secondsOf(said.get("Retry-After")) : undefined;
  const code = status === 429 ? "rate_limited" : `http_${status}`;
  const why = reason ? `: ${reason}` : "";
  throw new PageError(`${setting} answered ${status}${why}`, code, retryAfter);
}

/** The beginning of a refusal, in one line; the service may say in it what it was sent. */
async function reasonIn(body, secrets) {
  const decoder = new TextDecoder();
  let text = "";
  for await (const bytes of body ?? []) {
    text += decoder.decode(bytes, { stream: true });
    if (text.length > 10 * REASON_CHARACTERS) break; // the rest is not read
  }
  for (const secret of secrets) text = text.replaceAll(secret.replace(/^Bearer /, ""), "…");
  return text.replace(/[\p{Cc}\p{Cf}\s]+/gu, " ").trim().slice(0, REASON_CHARACTERS);
}

/** The whole of a body, which may say nothing of its length, and have no end. */
async function bounded(setting, body) {
  const decoder = new TextDecoder();
  let [text, length] = ["", 0];
  for await (const bytes of body ?? []) {
    length += bytes.length;
    text += decoder.decode(bytes, { stream: true });
    if (length > MAX_BYTES)
      throw new PageError(`${setting} answered more than 10 MB`, "bad_result");
  }
  return text + decoder.decode();
}

/** The object in a JSON text, or else an error with that code. */
export function answerOf(text, code = "bad_result") {
  try {
    const answer = JSON.parse(text);
    if (typeof answer === "object" && answer !== null && !Array.isArray(answer)) return answer;
  } catch {
    // as below
  }
  const words = JSON.stringify(text.slice(0, 60));
  throw new PageError(`its answer is no JSON object: ${words}`, code);
}

function checked(setting, address) {
  let url;
  try {
    url = new URL(String(address ?? ""));
  } catch {
    throw new PageError(`${setting} in wrangler.jsonc is no address`, "not_configured");
  }
  const isHere = ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
  if (url.protocol === "https:" || (url.protocol === "http:" && isHere)) return url;
  const why = `${setting} has to be https://: pages and a secret go there`;
  throw new PageError(why, "not_configured");
}

/** Of a header that has seconds, or a date. */
function secondsOf(header) {
  const seconds = Number(header ?? LATER_SECONDS);
  const given = Number.isNaN(seconds) ? (Date.parse(String(header)) - Date.now()) / 1000 : seconds;
  return Number.isFinite(given) ? Math.max(1, given) : LATER_SECONDS;
}
