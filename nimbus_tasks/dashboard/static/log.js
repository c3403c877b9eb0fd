// The log of one page, at the side; it grows as long as it is open.

import { el, setText, show, sync } from "./dom.js";
import { ask } from "./server.js";
import { count, words } from "./words.js";

export function openLog(batchId, page) {
  const heading = el("h2", { id: "log-name", tabindex: "-1" }, el("bdi", {}, page));
  const state = el("p", { class: "quiet", role: "status" }, "Reading its log");
  const wrong = el("p", { class: "wrong" });
  const earlier = el("p", { class: "quiet", hidden: true });
  const list = el("ol", { class: "log" });
  const dialog = el(
    "dialog",
    { class: "sheet", "aria-labelledby": "log-name" },
    el("div", { class: "sheet-head" }, heading, el("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    state,
    wrong,
    earlier,
    list,
  );
  let isReading = false;

  async function refresh() {
    if (isReading) return;
    isReading = true;
    try {
      const log = await ask(`batches/${encodeURIComponent(batchId)}/log?page=${encodeURIComponent(page)}`);
      setText(heading.firstChild, log.name);
      setText(state, `${words(log.status)} · attempt ${count(log.attempts)} · ${log.page_id}`);
      setText(wrong, log.error ? `${log.code}: ${log.error}` : "");
      show(earlier, log.earlier > 0);
      setText(earlier, `${count(log.earlier)} earlier entries are not shown`);
      const numbered = log.entries.map((entry, index) => ({ ...entry, number: log.earlier + index }));
      sync(list, numbered, (entry) => `${entry.number} ${entry.at}`, line, () => {});
      if (!numbered.length) setText(state, `${state.textContent} · nothing logged yet`);
    } catch (error) {
      setText(state, "");
      setText(wrong, error.message);
    } finally {
      isReading = false;
    }
  }

  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  heading.focus();
  refresh();
  return { refresh, close: () => dialog.close(), get isOpen() { return dialog.open; } };
}

function line(entry) {
  const step = entry.step && entry.step !== entry.message ? el("strong", {}, el("bdi", {}, entry.step)) : null;
  return el(
    "li",
    { "data-level": entry.level },
    el("span", { class: "quiet number" }, entry.at),
    el("span", { class: "what" }, step, step && " ", el("bdi", {}, entry.message), entry.took && entry.took !== "–" ? el("span", { class: "quiet" }, ` ${entry.took}`) : null),
  );
}
