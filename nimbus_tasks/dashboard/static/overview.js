// All batches of the project, the newest first.

import { makeBar, updateBar } from "./bar.js";
import { el, part, setText, show, sync } from "./dom.js";
import { count, pages, words } from "./words.js";

export function overview() {
  const list = el("ol", { class: "batches", "data-part": "list" });
  const empty = el(
    "div",
    { class: "empty", hidden: true },
    el("p", {}, "No batches yet."),
    el("p", { class: "quiet" }, "A folder of content maps becomes one with ", el("code", {}, "invoke nimbus.upload"), ". It appears here by itself."),
  );
  const more = el("p", { class: "quiet", hidden: true });
  const element = el("div", {}, el("h1", { tabindex: "-1" }, "Batches"), empty, list, more);

  function update(look) {
    show(empty, look.batches.length === 0);
    show(list, look.batches.length > 0);
    show(more, look.more > 0);
    setText(more, `… and ${count(look.more)} older ones: invoke nimbus.batch.list`);
    sync(list, look.batches, (batch) => batch.batch_id, row, updateRow);
  }

  const title = (look) => {
    const open = look.batches.filter((batch) => batch.summary.pending > 0).length;
    return open ? `${count(open)} at work` : "Batches";
  };
  return { element, update, title, heard: () => "" };
}

function row(batch) {
  return el(
    "li",
    {},
    el(
      "a",
      { href: `#${batch.batch_id}`, class: "batch-row" },
      el("span", { class: "id" }, batch.batch_id),
      el("span", { class: "quiet when" }, batch.created_at),
      el("span", { class: "state", "data-part": "state" }),
      makeBar(),
      el("span", { class: "figures", "data-part": "figures" }),
    ),
  );
}

function updateRow(item, batch) {
  const { completed, failed, pending } = batch.summary;
  const state = part(item, "state");
  setText(state, words(batch.status));
  state.dataset.state = batch.status;
  const counts = { done: completed, failed, cancelled: batch.cancelled, queued: pending, processing: 0, uploaded: 0 };
  updateBar(item.querySelector(".bar"), counts, batch.page_count);
  const figures = [pages(batch.page_count)];
  if (failed) figures.push(`${count(failed)} failed`);
  if (pending) figures.push(`${count(pending)} to go`);
  setText(part(item, "figures"), figures.join(" · "));
}
