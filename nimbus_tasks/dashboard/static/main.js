// The page: which view it shows, how old that is, and what is wrong if something is.

import { batchView } from "./batch.js";
import { setText, show } from "./dom.js";
import { overview } from "./overview.js";
import { Stream, ask } from "./server.js";
import { duration } from "./words.js";

const at = (id) => document.getElementById(id);
const BATCH_ID = /^#([A-Za-z0-9_-]{1,128})$/;

let view = null;
let stream = null;
let project = "nimbus";
let readAt = null; // of performance.now(): when the store was read for what is shown
let trouble = null;
let note = "";

function open(isFirst) {
  const asked = BATCH_ID.exec(location.hash);
  if (location.hash === "#main") return;
  stream?.close();
  view?.close?.();
  const batch = asked ? asked[1] : null;
  readAt = null;
  view = batch === null ? overview() : batchView(batch, say);
  at("main").replaceChildren(view.element);
  document.title = `${batch ?? "Batches"} – ${project}`;
  stream = new Stream(batch, hear);
  if (!isFirst) view.element.querySelector("h1").focus();
}

function hear(name, data) {
  if (name === "lost") {
    trouble = lost(data.why);
  } else if (name === "bye") {
    return;
  } else {
    note = data.note ?? "";
    if (data.age !== undefined && data.age !== null) readAt = performance.now() - data.age * 1000;
    trouble = name === "fault" ? fault(data) : null;
  }
  if (name === "look") {
    view.update(data.document);
    document.title = `${view.title(data.document)} – ${project}`;
    const heard = view.heard();
    if (heard) setText(at("heard"), heard);
  }
  tick();
}

function fault(data) {
  if (data.missing) return { state: "fault", text: `${data.message}.` };
  const advice = data.advice ? ` ${data.advice}` : "";
  return { state: "fault", text: `The store cannot be read: ${data.message}.${advice}`, again: "It is tried again and again." };
}

function lost(why) {
  if (why === "gone" && trouble?.isStopped) return trouble;
  if (why === "refused") {
    return { state: "lost", text: "This dashboard was started anew, at another address: open the one that it printed." };
  }
  const text = why === "stopped" ? "The dashboard was stopped." : "The dashboard does not answer.";
  return { state: "lost", isStopped: why === "stopped", text: `${text} Batches and workers go on without it. Start it again with: invoke nimbus.dashboard`, again: "This page connects again by itself." };
}

function say(words) {
  setText(at("said"), words);
}

/** How old what is shown is: it goes on when nothing is heard any more. */
function tick() {
  const age = readAt === null ? null : (performance.now() - readAt) / 1000;
  const isStale = trouble !== null || (age !== null && age > 60);
  at("freshness").dataset.state = trouble?.state ?? (age === null ? "waiting" : isStale ? "fault" : "live");
  const isNow = trouble === null && age !== null && age < 3;
  const known = age === null ? (trouble ? "nothing read yet" : "connecting") : `as of ${duration(age)} ago`;
  setText(at("age"), [isNow ? "live" : known, note].filter(Boolean).join(" · "));
  show(at("banner"), trouble !== null);
  setText(at("trouble"), trouble?.text ?? "");
  setText(at("trouble-age"), trouble?.again ? [age === null ? "" : `What you see is ${duration(age)} old.`, trouble.again].join(" ").trim() : "");
  if (age !== null && trouble === null) view.tick?.(age);
}

addEventListener("hashchange", () => open(false));
setInterval(tick, 1000);
open(true);
ask("project").then((found) => {
  project = found.name;
  setText(at("project"), project);
}, () => {});
