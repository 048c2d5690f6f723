"use strict";
// Charts are drawn when they come near the window, all of them once the page is idle.
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll(".chart[data-chart]")];
  const state = { text: "", method: [], penalty: [] };
  const views = [];

  async function draw(place) {
    const spec = specs[place.dataset.chart];
    // What is folded away has no width yet: it is drawn when it is opened.
    if (!spec || place.dataset.drawn || place.closest("details:not([open])")) return;
    place.dataset.drawn = "yes";
    spec.config.font = getComputedStyle(place).fontFamily;
    try {
      const { view } = await vegaEmbed(place, spec, { renderer: "svg", actions: false });
      views.push(view);
      view.addEventListener("click", (event, item) => open(item && item.datum && item.datum.run));
      await show(view);
    } catch (error) {
      place.classList.add("broken");
      place.textContent = `This chart could not be drawn: ${error.message}`;
    }
  }
  function show(view) {
    for (const [name, value] of Object.entries(state)) view.signal(name, value);
    return view.runAsync();
  }
  function open(run) {
    if (run) location.hash = "run=" + encodeURIComponent(run);
  }

  // Rows of tables say data-label, data-method and data-penalty.
  function matches(row) {
    const { label, method, penalty } = row.dataset;
    return (
      row.textContent.concat(" ", label).toLowerCase().includes(state.text) &&
      (!state.method.length || state.method.includes(method)) &&
      (!state.penalty.length || state.penalty.includes(penalty))
    );
  }
  function filter() {
    const rows = [...document.querySelectorAll("tr[data-label]")];
    for (const row of rows) row.hidden = !matches(row);
    const left = rows.filter((row) => !row.hidden).length;
    const on = state.text || state.method.length || state.penalty.length;
    for (const out of document.querySelectorAll(".filter output")) {
      out.textContent = on ? `${left} of ${rows.length} rows` : "";
    }
    views.forEach(show);
  }
  for (const input of document.querySelectorAll(".filter input")) {
    input.addEventListener("input", () => {
      state.text = input.value.trim().toLowerCase();
      filter();
    });
  }
  for (const button of document.querySelectorAll(".filter button[data-value]")) {
    button.addEventListener("click", () => {
      const { kind, value } = button.dataset;
      const on = !state[kind].includes(value);
      state[kind] = on ? [...state[kind], value] : state[kind].filter((own) => own !== value);
      button.setAttribute("aria-pressed", on);
      filter();
    });
  }

  const near = new IntersectionObserver(
    (seen) => {
      for (const { isIntersecting, target } of seen) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "600px" },
  );
  for (const place of places) near.observe(place);
  // A printer doesn't wait: what isn't drawn by then would be missing.
  const idle = window.requestIdleCallback || ((then) => setTimeout(then, 200));
  const rest = [...places];
  const next = () => rest.length && draw(rest.shift()).then(() => idle(next));
  addEventListener("load", () => idle(next));
  const unfold = ({ target }) => target.querySelectorAll(".chart").forEach(draw);
  document.addEventListener("toggle", unfold, true);
  addEventListener("beforeprint", () => places.forEach(draw));
})();
