// Speaking to the dashboard's server: what it pushes, what it is asked for.

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 5000;

/**
 * Listens to a stream of events for as long as the page is seen, and connects again when it breaks.
 * `hear(name, data)` gets the server's events, and `lost` where the server is gone.
 */
export class Stream {
  constructor(batch, hear) {
    this.address = batch === null ? "events" : `events?batch=${encodeURIComponent(batch)}`;
    this.hear = hear;
    this.pause = FIRST_PAUSE;
    this.source = null;
    this.timer = null;
    this.onVisibility = () => (document.hidden ? this.rest() : this.connect());
    document.addEventListener("visibilitychange", this.onVisibility);
    if (!document.hidden) this.connect();
  }

  connect() {
    this.rest();
    const source = new EventSource(this.address);
    this.source = source;
    for (const name of ["look", "same", "fault", "wait", "bye"]) {
      source.addEventListener(name, (event) => {
        this.pause = FIRST_PAUSE;
        this.hear(name, JSON.parse(event.data));
        if (name === "bye") this.later("stopped");
      });
    }
    source.addEventListener("error", () => this.later("gone"));
  }

  /** The server is gone: say so, and try again in a while. */
  async later(why) {
    this.rest();
    const pause = this.pause;
    this.pause = Math.min(LONGEST_PAUSE, pause * 1.5);
    this.timer = setTimeout(() => this.connect(), pause);
    this.hear("lost", { why });
    if (why === "gone" && (await isRefused())) this.hear("lost", { why: "refused" });
  }

  /** A browser has six connections to a server: a page that nobody sees leaves its own to others. */
  rest() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  close() {
    this.rest();
    document.removeEventListener("visibilitychange", this.onVisibility);
  }
}

/** Whether there is a dashboard that does not know this page's address any more. */
async function isRefused() {
  try {
    return (await fetch("project")).status === 403;
  } catch {
    return false;
  }
}

/** Asks for something. Throws an Error that says what is wrong, and what to do. */
export async function ask(address, options = {}) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The dashboard does not answer: nothing was done that it has not said.");
  }
  const isJson = answer.headers.get("content-type")?.startsWith("application/json");
  const body = isJson ? await answer.json() : { error: (await answer.text()).trim() };
  if (!answer.ok) throw new Error([body.error, body.advice].filter(Boolean).join(" · "));
  return body;
}

/** Has something done to a batch. */
export function act(batch, action, body) {
  return ask(`batches/${encodeURIComponent(batch)}/${action}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-nimbus-action": action },
    body: JSON.stringify(body),
  });
}
