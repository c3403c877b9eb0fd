// Figures in words, as the terminal has them.

const whole = new Intl.NumberFormat("en");

/** `1,234` */
export const count = (number) => whole.format(number);

/** `1 page`, `2,000 pages` */
export const pages = (number) => `${count(number)} page${number === 1 ? "" : "s"}`;

/** `partially completed` */
export const words = (state) => state.replaceAll("_", " ");

/** `4 s`, `3 min 20 s`, `2 h 5 min`: seconds that pass. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const total = Math.max(0, Math.floor(seconds));
  if (total < 60) return `${total} s`;
  for (const [size, name, part, partName] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
    if (total < size) continue;
    const rest = Math.floor((total % size) / part);
    return `${Math.floor(total / size)} ${name}` + (rest ? ` ${rest} ${partName}` : "");
  }
  return "";
}

/** The states of a page, in the order in which a bar fills, with those that wait at its end. */
export const STATES = ["done", "failed", "cancelled", "processing", "queued", "uploaded"];

/** The time of `2026-11-24 14:57:43`; with its date if that is not today's. */
export function clock(moment) {
  const now = new Date();
  const today = [now.getFullYear(), now.getMonth() + 1, now.getDate()].map((part) => String(part).padStart(2, "0")).join("-");
  return moment.startsWith(today) ? moment.slice(11) : moment;
}
