// One batch, live: how far, how fast, what is in flight, what failed, what to do.

import { confirmCancel, confirmRetry } from "./actions.js";
import { makeBar, updateBar } from "./bar.js";
import { el, part, setText, show, sync } from "./dom.js";
import { openLog } from "./log.js";
import { STATES, clock, count, duration, pages, words } from "./words.js";

export function batchView(batchId, say) {
  let look = null;
  let log = null;
  let lastStatus = null;
  const named = (name, tag, props = {}, ...children) => el(tag, { "data-part": name, ...props }, ...children);
  const seeLog = (page) => {
    log = openLog(batchId, page);
  };
  const retryAll = el("button", { type: "button", onclick: () => confirmRetry(look, null, say) }, "Retry failed pages…");
  const cancel = el("button", { type: "button", class: "danger", onclick: () => confirmCancel(look, say) }, "Cancel batch…");
  const lookup = el("input", { id: "lookup", name: "page", autocomplete: "off", spellcheck: "false", placeholder: "path or page id", maxlength: "1000" });
  const element = el(
    "article",
    {},
    el("p", { class: "crumb" }, el("a", { href: "#" }, "← All batches")),
    el("div", { class: "title" }, el("h1", { tabindex: "-1", class: "id" }, batchId), named("state", "span", { class: "state" })),
    named("created", "p", { class: "quiet" }),
    named("body", "div", { hidden: true },
      el("div", { class: "hero" }, named("percent", "p", { class: "percent" }), el("div", {}, named("pages", "p", { class: "lead" }), named("facts", "p", { class: "quiet" }))),
      makeBar(),
      named("counts", "dl", { class: "counts" }),
      el("div", { class: "actions" }, retryAll, cancel),
      named("next", "section", { class: "next", "aria-labelledby": "h-next" }, el("h2", { id: "h-next" }, "Next"), named("steps", "ol")),
      named("flight", "section", { "aria-labelledby": "h-flight" }, el("h2", { id: "h-flight" }, "In flight ", named("flight-count", "span", { class: "quiet" })), named("flight-list", "ul", { class: "rows" }), named("flight-more", "p", { class: "quiet" })),
      named("failed", "section", { "aria-labelledby": "h-failed" },
        el("h2", { id: "h-failed" }, "Failed ", named("failed-count", "span", { class: "quiet" })),
        named("groups", "ul", { class: "groups" }),
        el("h3", {}, "Latest"),
        named("failures", "ul", { class: "rows" }),
        named("failed-more", "p", { class: "quiet" })),
      el("form", { class: "lookup", onsubmit: (event) => { event.preventDefault(); if (lookup.value.trim()) seeLog(lookup.value.trim()); } },
        el("label", { for: "lookup" }, "Log of a page"), el("div", { class: "field" }, lookup, el("button", { type: "submit" }, "Show")))),
  );
  const at = (name) => part(element, name);

  function update(document) {
    look = document;
    show(at("body"), true);
    const state = at("state");
    setText(state, words(look.status));
    state.dataset.state = look.status;
    setText(at("created"), `created ${look.created_at}` + (look.reason && look.status.startsWith("cancel") ? ` · reason: ${look.reason}` : ""));
    setText(at("percent"), look.percent);
    setText(at("pages"), `${count(look.ended)} of ${pages(look.page_count)}`);
    const facts = [look.rate, look.time_left, look.average && `average ${look.average}`, look.p95 && `p95 ${look.p95}`];
    setText(at("facts"), facts.filter(Boolean).join(" · ") || (look.finished ? "" : "no pace yet"));
    updateBar(element.querySelector(".bar"), look.counts, look.page_count);
    const counted = STATES.filter((one) => look.counts[one] > 0).map((one) => [one, look.counts[one]]);
    if (look.stalled) counted.push(["stalled", look.stalled]);
    sync(at("counts"), counted, ([one]) => one, ([one]) => el("div", { "data-state": one }, el("dt", {}, one), el("dd", {})), (pair, [, number]) => setText(pair.lastChild, count(number)));
    show(retryAll, look.can_retry);
    show(cancel, look.can_cancel);
    show(at("next"), look.next.length > 0);
    sync(at("steps"), look.next, (step) => step.command, step, (item, one) => setText(item.firstChild, one.why));
    flight();
    failures();
    if (log?.isOpen) log.refresh();
  }

  function flight() {
    const number = look.counts.processing;
    show(at("flight"), number > 0);
    setText(at("flight-count"), count(number));
    sync(at("flight-list"), look.in_flight, (page) => page.page_id ?? page.name, (page) => flightRow(page, seeLog), updateFlightRow);
    more(at("flight-more"), number - look.in_flight.length);
  }

  function failures() {
    const number = look.counts.failed;
    show(at("failed"), number > 0);
    setText(at("failed-count"), count(number));
    sync(at("groups"), look.groups, (group) => `${group.code} ${group.message} ${group.retry === null}`, (group) => groupRow(group, () => confirmRetry(look, group.retry, say)), updateGroup);
    sync(at("failures"), look.failures, (page) => `${page.page_id ?? page.name} ${page.attempts}`, (page) => failureRow(page, seeLog), () => {});
    more(at("failed-more"), number - look.failures.length);
  }

  /** Time passes between two looks, too. */
  function tick(age) {
    for (const row of at("flight-list").children) {
      const seconds = row.dataset.seconds;
      if (seconds !== "") setText(part(row, "seconds"), duration(Number(seconds) + age));
    }
  }

  /** What somebody who does not see the page should be told. */
  function heard() {
    const before = lastStatus;
    lastStatus = look.status;
    return before === null || before === look.status ? "" : `${batchId}: ${words(look.status)}`;
  }

  const title = () => `${look.finished ? words(look.status) : look.percent} · ${batchId}`;
  return { element, update, tick, title, heard, close: () => log?.close() };
}

function more(element, number) {
  show(element, number > 0);
  setText(element, `… and ${count(number)} more`);
}

/** A command whose lines break between its words, not behind a hyphen. */
function commandLine(command) {
  const code = el("code");
  for (const word of command.split(" ")) code.append(code.firstChild ? " " : "", el("span", {}, word));
  return code;
}

function step(one) {
  const copy = el("button", { type: "button", class: "small", "aria-label": `Copy: ${one.command}` }, "Copy");
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(one.command);
    setText(copy, "Copied");
    setTimeout(() => setText(copy, "Copy"), 1500);
  });
  return el("li", {}, el("p", {}, one.why), el("div", { class: "command" }, commandLine(one.command), copy));
}

function pageName(page, seeLog) {
  const name = el("bdi", {}, page.name);
  if (page.page_id === null) return el("span", { class: "name" }, name);
  return el("button", { type: "button", class: "name", title: "Show its log", onclick: () => seeLog(page.page_id) }, name);
}

function flightRow(page, seeLog) {
  return el(
    "li",
    { class: "flight-row" },
    pageName(page, seeLog),
    el("span", { class: "step", "data-part": "step" }),
    el("span", { class: "mini", "aria-hidden": "true" }, el("span", { "data-part": "fill" })),
    el("span", { class: "number", "data-part": "progress" }),
    el("span", { class: "number quiet", "data-part": "seconds" }),
  );
}

function updateFlightRow(row, page) {
  row.dataset.state = page.stalled ? "stalled" : "processing";
  row.dataset.seconds = page.seconds ?? "";
  setText(part(row, "step"), page.stalled ? "stalled: its worker is gone" : page.step);
  setText(part(row, "progress"), `${page.progress}%`);
  part(row, "fill").style.setProperty("--share", page.progress / 100);
  setText(part(row, "seconds"), duration(page.seconds));
}

function groupRow(group, retry) {
  const row = el(
    "li",
    {},
    el("p", { class: "group-head" }, el("strong", { "data-part": "count" }), el("bdi", { class: "code" }, group.code), group.transient ? el("span", { class: "tag" }, "a retry may help") : null),
    group.message ? el("p", {}, el("bdi", {}, group.message)) : null,
    el("p", { class: "quiet", "data-part": "examples" }),
  );
  if (group.retry !== null) {
    row.append(el("button", { type: "button", class: "small", onclick: retry, "aria-label": `Retry pages that failed with ${group.code}` }, "Retry…"));
  }
  return row;
}

function updateGroup(row, group) {
  setText(part(row, "count"), count(group.count));
  setText(part(row, "examples"), group.examples.length ? `e.g. ${group.examples.join(", ")}` : "");
}

function failureRow(page, seeLog) {
  return el(
    "li",
    { class: "failure-row" },
    pageName(page, seeLog),
    el("span", { class: "error" }, el("bdi", { class: "code" }, page.code), page.error ? ": " : "", el("bdi", {}, page.error)),
    el("time", { class: "number quiet", title: page.at }, clock(page.at)),
  );
}
