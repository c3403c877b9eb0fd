// Retry and cancel, each behind a question.

import { el } from "./dom.js";
import { act } from "./server.js";
import { count, pages } from "./words.js";

/** Asks whether failed pages are to be queued again: all of them, or those of one error code. */
export function confirmRetry(look, code, say) {
  const group = look.groups.find((one) => one.retry === code && code !== null);
  const number = group ? group.with_code : look.counts.failed;
  question({
    title: `Queue ${pages(number)} again?`,
    text: [
      group ? `They failed with ${group.code}.` : "They are all that failed in this batch.",
      "They go ahead of new pages; what earlier attempts did stays in their logs. They wait for whoever works on this batch.",
    ],
    yes: `Queue ${pages(number)} again`,
    no: "Leave them",
    async done() {
      const retried = await act(look.batch_id, "retry", { code });
      const later = retried.superseded ? ` ${count(retried.superseded)} more belong to a later batch now; retry them there.` : "";
      say(`${pages(retried.requeued.length)} of ${retried.batch_id} queued again.${later}`);
    },
  });
}

/** Asks whether a batch is to be cancelled, and why. */
export function confirmCancel(look, say) {
  const waiting = look.counts.queued + look.counts.uploaded;
  const reason = el("input", { id: "reason", maxlength: "1000", autocomplete: "off" });
  question({
    title: `Cancel ${look.batch_id}?`,
    text: [`${pages(waiting)} that wait will not start. ${pages(look.counts.processing)} in flight finish and keep their result.`],
    field: el("p", { class: "reason" }, el("label", { for: "reason" }, "Reason (shown wherever the batch is)"), reason),
    yes: "Cancel the batch",
    no: "Let it go on",
    isDangerous: true,
    async done() {
      const cancelled = await act(look.batch_id, "cancel", { reason: reason.value.trim() || null });
      say(`${cancelled.batch_id}: ${pages(cancelled.cancelled)} cancelled, ${count(cancelled.in_flight)} still in flight.`);
    },
  });
}

function question({ title, text, field, yes, no, isDangerous, done }) {
  const wrong = el("p", { class: "wrong", role: "alert" });
  const confirm = el("button", { type: "button", class: isDangerous ? "danger solid" : "solid" }, yes);
  const refuse = el("button", { type: "button", onclick: () => dialog.close() }, no);
  const dialog = el(
    "dialog",
    { class: "question", "aria-labelledby": "question" },
    el("h2", { id: "question" }, title),
    ...text.map((line) => el("p", {}, line)),
    field,
    wrong,
    el("div", { class: "actions" }, confirm, refuse),
  );
  confirm.addEventListener("click", async () => {
    confirm.disabled = true;
    wrong.textContent = "";
    try {
      await done();
      dialog.close();
    } catch (error) {
      wrong.textContent = error.message;
      confirm.disabled = false;
    }
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  // Enter by habit must not cancel a batch.
  (field?.querySelector("input") ?? refuse).focus();
}
