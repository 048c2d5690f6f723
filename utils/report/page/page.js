"use strict";
// Tables sort by a click on a column's head: numbers as numbers ("1.2 M", "97.4 ± 0.3"), - last.
const FACTORS = { k: 1e3, M: 1e6, G: 1e9 };
function value(cell) {
  const text = cell.textContent.trim();
  const number = /^([-+]?[\d.]+(?:e[-+]?\d+)?)(?:\s*([kMG])(?![a-z]))?/.exec(text.replaceAll(",", ""));
  return number ? Number(number[1]) * (FACTORS[number[2]] || 1) : text;
}
function order(a, b) {
  if (a === "-" || b === "-") return a === b ? 0 : a === "-" ? Infinity : -Infinity;
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement;
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const rows = Array.from(body.rows, (row) => [value(row.cells[head.cellIndex]), row]);
    rows.sort(([a], [b]) => {
      const by = order(a, b);
      return Math.abs(by) === Infinity ? by : up ? by : -by; // what is missing stays last
    });
    body.append(...rows.map(([, row]) => row));
  });
}
// Paper shows everything.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
