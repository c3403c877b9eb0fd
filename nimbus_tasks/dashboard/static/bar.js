// The bar of a batch: one part a state, in that state's colour.

import { el, sync } from "./dom.js";
import { STATES, count, pages } from "./words.js";

export const makeBar = () => el("div", { class: "bar", role: "img" });

export function updateBar(bar, counts, total) {
  const there = STATES.filter((state) => counts[state] > 0);
  sync(
    bar,
    there.filter((state) => state !== "queued" && state !== "uploaded"),
    (state) => state,
    (state) => el("span", { "data-state": state }),
    (span, state) => span.style.setProperty("--share", counts[state] / Math.max(1, total)),
  );
  const parts = there.map((state) => `${count(counts[state])} ${state}`).join(", ");
  bar.setAttribute("aria-label", `${pages(total)}: ${parts || "none"}`);
}
