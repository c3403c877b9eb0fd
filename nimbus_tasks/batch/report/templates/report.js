"use strict";
// The full table of pages, and buttons that copy. Without this, the file shows all but those.
// Texts reach the page as text nodes only: nothing in here makes HTML out of a string.
(() => {
  const ROWS_A_PAGE = 50;
  const MOST_CODES = 100;
  const $ = (id) => document.getElementById(id);
  const STATES = [...$("state").options].map((option) => option.value).filter(Boolean);
  const COLUMNS = [
    { name: "page", of: (row) => row.at },
    { name: "state", of: (row) => STATES.indexOf(row.state) },
    { name: "changes", of: (row) => row.changes, isNumber: true },
    { name: "confidence", of: (row) => row.percent, isNumber: true },
    { name: "time", of: (row) => row.duration, isNumber: true },
    { name: "attempts", of: (row) => row.attempts, isNumber: true },
    { name: "ended", of: (row) => row.ended },
    { name: "error", of: (row) => (row.code || row.error ? `${row.code} ${row.error}` : null) },
  ];
  let rows = [];
  let found = [];
  let isOneDay = true;
  let view = { q: "", state: "", code: "", sort: "", page: 1 };

  // The other half of packed.py: a line is a chunk of rows, with a list a column.
  async function unpack(base64) {
    const packed = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const inflated = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const lines = (await new Response(inflated).text()).split("\n");
    return lines.filter(Boolean).flatMap((line) => unpackChunk(JSON.parse(line)));
  }

  function unpackChunk(chunk) {
    let moment = 0;
    const unpacked = chunk.names.map((name, at) => ({
      name,
      state: STATES.find((state) => state[0] === chunk.states[at]),
      changes: chunk.changes[at],
      percent: chunk.percent[at],
      duration: chunk.duration[at],
      attempts: chunk.attempts[at],
      ended: chunk.ended[at] === null ? null : (moment += chunk.ended[at]),
      code: "",
      error: "",
      later: "",
    }));
    for (const [at, code, error] of chunk.errors) Object.assign(unpacked[at], { code, error });
    for (const [at, later] of chunk.later) unpacked[at].later = later;
    return unpacked;
  }

  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (name) made.className = name;
    return made;
  }

  // As the static tables and the terminal have it: see ui/figures.py.
  function duration(ms) {
    if (ms < 999.5) return `${ms} ms`;
    if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
    const whole = Math.round(ms / 1000);
    if (whole < 60) return `${whole} s`;
    const two = (count, name, rest, restName) =>
      `${count} ${name}` + (rest ? ` ${rest} ${restName}` : "");
    if (whole >= 86400)
      return two(Math.floor(whole / 86400), "d", Math.floor((whole % 86400) / 3600), "h");
    if (whole >= 3600)
      return two(Math.floor(whole / 3600), "h", Math.floor((whole % 3600) / 60), "min");
    return two(Math.floor(whole / 60), "min", whole % 60, "s");
  }

  const count = (number) => number.toLocaleString("en");
  const iso = (seconds) => new Date(seconds * 1000).toISOString();
  // Of a batch of one day the day is said above.
  const clock = (seconds) => iso(seconds).slice(isOneDay ? 11 : 0, 19).replace("T", " ");

  function rowElement(row) {
    const made = element("tr");
    const name = element("th");
    name.scope = "row";
    name.append(element("bdi", row.name));
    const state = element("td");
    state.append(element("span", row.state, `state state-${row.state}`));
    if (row.later) state.append(element("small", `now in ${row.later}`, "later"));
    const error = element("td");
    if (row.code) error.append(element("b", row.code), " ");
    if (row.error) error.append(element("bdi", row.error));
    made.append(
      name,
      state,
      element("td", row.changes === null ? "" : count(row.changes), "number"),
      element("td", row.percent === null ? "" : (row.percent / 100).toFixed(2), "number"),
      element("td", row.duration === null ? "" : duration(row.duration), "number"),
      element("td", count(row.attempts), "number"),
      element("td", row.ended === null ? "" : clock(row.ended), "moment"),
      error,
    );
    return made;
  }

  function choose() {
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    found = rows.filter(
      (row) =>
        (!view.state || row.state === view.state) &&
        (!view.code || row.code === view.code) &&
        words.every((word) => row.text.includes(word)),
    );
    const column = COLUMNS.find((one) => one.name === view.sort.replace("-", ""));
    if (!column) return;
    const sign = view.sort.startsWith("-") ? -1 : 1;
    const value = column.of;
    found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return a.at - b.at;
      if (x === null) return 1; // what has no value comes last, in either direction
      if (y === null) return -1;
      return x < y ? -sign : sign;
    });
  }

  function show() {
    choose();
    const last = Math.max(1, Math.ceil(found.length / ROWS_A_PAGE));
    view.page = Math.min(Math.max(1, view.page), last);
    const from = (view.page - 1) * ROWS_A_PAGE;
    const part = found.slice(from, from + ROWS_A_PAGE);
    $("table").tBodies[0].replaceChildren(...part.map(rowElement));
    $("found").textContent =
      found.length === rows.length
        ? `${count(rows.length)} pages`
        : `${count(found.length)} of ${count(rows.length)} pages`;
    $("pager").hidden = last === 1;
    $("part").textContent = `${count(from + 1)} to ${count(from + part.length)}`;
    $("before").disabled = view.page === 1;
    $("after").disabled = view.page === last;
    for (const id of ["q", "state", "code"]) if ($(id).value !== view[id]) $(id).value = view[id];
    for (const head of $("table").tHead.rows[0].cells) {
      const name = head.dataset.column;
      const order = { [name]: "ascending", [`-${name}`]: "descending" }[view.sort || "page"];
      if (order) head.setAttribute("aria-sort", order);
      else head.removeAttribute("aria-sort");
    }
  }

  // The choice is in the address, so that it can be sent to somebody, and comes back.
  function toAddress() {
    const kept = Object.entries(view).filter(([key, value]) => value && !(key === "page" && value === 1));
    const hash = new URLSearchParams(kept.map(([key, value]) => [key, String(value)])).toString();
    history.replaceState(null, "", hash ? `#${hash}` : location.pathname + location.search);
  }

  function fromAddress() {
    const hash = location.hash.slice(1);
    if (hash && !hash.includes("=")) return; // a place in the page
    const given = new URLSearchParams(hash);
    const sort = given.get("sort") ?? "";
    view = {
      q: given.get("q") ?? "",
      state: STATES.includes(given.get("state")) ? given.get("state") : "",
      code: given.get("code") ?? "",
      sort: COLUMNS.some((one) => one.name === sort.replace("-", "")) ? sort : "",
      page: parseInt(given.get("page") ?? "1", 10) || 1,
    };
    offerCode(view.code);
  }

  function change(changes) {
    view = { ...view, page: 1, ...changes };
    show();
    toAddress();
  }

  function offerCode(code) {
    const isThere = [...$("code").options].some((option) => option.value === code);
    if (!isThere) $("code").append(new Option(code, code));
  }

  function offerCodes() {
    const counts = new Map();
    for (const row of rows) if (row.code) counts.set(row.code, (counts.get(row.code) ?? 0) + 1);
    const ordered = [...counts].sort((a, b) => b[1] - a[1]).slice(0, MOST_CODES);
    for (const [code, its] of ordered) $("code").append(new Option(`${code} (${count(its)})`, code));
    $("code").closest("label").hidden = !counts.size;
  }

  function drawHead() {
    for (const { name, isNumber } of COLUMNS) {
      const head = element("th", "", isNumber ? "number" : "");
      head.scope = "col";
      head.dataset.column = name;
      const button = element("button", name === "ended" ? "ended, UTC" : name);
      button.type = "button";
      button.addEventListener("click", () => {
        const isUp = view.sort === name || (name === "page" && !view.sort);
        change({ sort: isUp ? `-${name}` : name });
      });
      head.append(button);
      $("table").tHead.rows[0].append(head);
    }
  }

  function showPages(code) {
    change({ q: "", state: "failed", code, sort: "" });
    $("pages").scrollIntoView();
    $("pages").focus({ preventScroll: true });
  }

  async function startTable() {
    rows = await unpack($("rows").textContent);
    rows.forEach((row, at) => {
      row.at = at;
      row.text = `${row.name} ${row.code} ${row.error}`.toLowerCase();
    });
    isOneDay = new Set(rows.map((row) => row.ended && Math.floor(row.ended / 86400)).filter(Boolean)).size < 2;
    drawHead();
    offerCodes();
    fromAddress();
    show();
    $("q").addEventListener("input", () => change({ q: $("q").value }));
    $("state").addEventListener("change", () => change({ state: $("state").value }));
    $("code").addEventListener("change", () => change({ code: $("code").value }));
    $("filter").addEventListener("submit", (event) => event.preventDefault());
    $("filter").addEventListener("reset", () => change({ q: "", state: "", code: "", sort: "" }));
    $("before").addEventListener("click", () => change({ page: view.page - 1 }));
    $("after").addEventListener("click", () => change({ page: view.page + 1 }));
    window.addEventListener("hashchange", () => {
      fromAddress();
      show();
    });
    for (const button of document.querySelectorAll("button.filter")) {
      button.hidden = false;
      button.addEventListener("click", () => showPages(button.dataset.code));
    }
    $("static").hidden = true;
    $("all").hidden = false;
  }

  async function copy(button) {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code); // at least it is marked, to be copied by hand
      if (!document.execCommand("copy")) return;
    }
    const label = button.firstChild;
    label.textContent = $("said").textContent = "Copied";
    setTimeout(() => (label.textContent = "Copy"), 2000);
  }

  for (const button of document.querySelectorAll("button.copy")) {
    button.hidden = false;
    button.addEventListener("click", () => copy(button));
  }
  startTable().catch(() => {}); // too old a browser: the static tables stay
})();
