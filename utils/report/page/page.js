"use strict";
// Tables sort by a click on a column's head: by the number in data-v where there is one, else by
// the text; what is missing stays last.
function value(cell) {
  const text = cell.textContent.trim();
  return text === "-" ? null : "v" in cell.dataset ? Number(cell.dataset.v) : text;
}
function order(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const rows = Array.from(body.rows, (row) => [value(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) =>
      a === null || b === null ? (a === null) - (b === null) : sign * order(a, b));
    body.append(...rows.map(([, row]) => row));
  });
}

// #run=NAME shows a run; #run=NAME&with=OTHER two, and where they differ.
const details = JSON.parse(document.getElementById("details").textContent);
Object.setPrototypeOf(details.runs, null); // no run is called "constructor" unless one is
const dialog = document.getElementById("run");
function make(tag, text, ...children) {
  const node = document.createElement(tag);
  if (text !== null) node.textContent = text;
  node.append(...children);
  return node;
}
function settings(run) {
  const all = { ...details.usual[run.stage], ...run.settings };
  for (const name in all) if (all[name] === null) delete all[name];
  return all;
}
function percent(share) {
  return share === undefined ? undefined : (100 * share).toFixed(2) + " %";
}
function facts(run) {
  return {
    stage: run.stage, "test accuracy": percent(run.test), "validation accuracy": percent(run.val),
    seed: run.seed, parameters: run.params, MACs: run.macs, parent: run.parent,
    command: details.texts.command[run.command], commit: run.commit,
    machine: details.texts.machine[run.machine], finished: run.finished,
    seconds: run.seconds, ...settings(run),
  };
}
function beside(runs) {
  const all = runs.map(facts);
  const names = [...new Set(all.flatMap(Object.keys))];
  const same = [], different = []; // where two runs differ comes first
  for (const name of names) {
    const texts = all.map((one) => one[name] === undefined ? "-" : String(one[name]));
    if (texts.every((text) => text === "-")) continue;
    const differs = texts.some((text) => text !== texts[0]);
    const row = make("tr", null, make("td", name));
    texts.forEach((text) => {
      const cell = make("td", name === "parent" && text in details.runs ? null : text);
      if (cell.textContent !== text) {
        const link = make("a", text);
        link.href = "#run=" + encodeURIComponent(text);
        cell.append(link);
      }
      cell.className = differs ? "word differs" : "word";
      row.append(cell);
    });
    (differs ? different : same).push(row);
  }
  return make("div", null, make("table", null, make("tbody", null, ...different, ...same)));
}
function layers(run) {
  if (!run.layers || !run.layers.length) return "";
  const now = ["channels", "params", "MACs"];
  const heads = run.layers[0].length === 3
    ? ["layer", "channels", "before"]
    : ["layer", ...now.flatMap((name) => [name, "before"])];
  const head = make("tr", null, ...heads.map((name) => make("th", name)));
  const rows = run.layers.map((cells) => make("tr", null, ...cells.map((cell) =>
    make("td", typeof cell === "number" ? cell.toLocaleString("en") : cell ?? "-"))));
  const table = make("table", null, make("thead", null, head), make("tbody", null, ...rows));
  return make("details", null, make("summary", `${rows.length} layers`), make("div", null, table));
}
function show() {
  const asked = new URLSearchParams(location.hash.slice(1));
  const name = asked.get("run"), other = asked.get("with");
  const run = details.runs[name];
  if (!run) return dialog.open && dialog.close();
  const close = make("button", "close");
  close.className = "close";
  close.onclick = () => dialog.close();
  const box = make("input", null), list = make("datalist", null);
  list.id = "all-runs";
  for (const key in details.runs) list.append(make("option", key));
  box.setAttribute("list", list.id);
  box.placeholder = "another run, to see where they differ";
  box.setAttribute("aria-label", box.placeholder);
  box.value = other || "";
  box.onchange = () => {
    location.hash = new URLSearchParams({ run: name, ...(box.value ? { with: box.value } : {}) });
  };
  const second = details.runs[other];
  const title = second ? `${name} beside ${other}` : name;
  dialog.replaceChildren(close, make("h2", title), box, list,
    beside(second ? [run, second] : [run]), layers(run));
  for (const part of dialog.querySelectorAll(":scope > div")) part.className = "scroll";
  if (!dialog.open) dialog.showModal();
}
dialog.addEventListener("close", () => {
  if (location.hash.startsWith("#run=")) history.pushState(null, "", location.pathname + location.search);
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
addEventListener("hashchange", show);
show();
