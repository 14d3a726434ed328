"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Sorting: numbers by data-sort, text by itself; cells without a value stay last in both directions.
  const value = (row, place) => {
    const cell = row.cells[place];
    const text = cell.dataset.sort ?? cell.textContent.trim();
    return text === "" || (cell.dataset.sort === undefined && cell.classList.contains("none")) ? null : text;
  };
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b), "en", { numeric: true }) : x - y;
  };
  for (const button of all("button.sort")) {
    button.addEventListener("click", () => {
      const head = button.parentElement, body = head.closest("table").tBodies[0];
      const was = head.getAttribute("aria-sort"), numeric = [...body.rows].some((row) => row.cells[head.cellIndex].dataset.sort);
      const order = was ? (was === "ascending" ? "descending" : "ascending") : numeric ? "descending" : "ascending";
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", order);
      const rows = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
      rows.sort(([a], [b]) => a === null || b === null ? (a === null) - (b === null) : (order === "ascending" ? 1 : -1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  }

  // Rows: a text in the table's own box, and the methods named in the bar at the top.
  const byMethod = document.getElementById("method-filter");
  const filterRows = (table) => {
    const own = table.closest("figure")?.querySelector(".search")?.value.toLowerCase().trim() ?? "";
    const names = byMethod.value.toLowerCase().split(",").map((name) => name.trim()).filter(Boolean);
    for (const row of table.tBodies[0].rows) {
      const method = row.dataset.method?.toLowerCase();
      const named = !names.length || method === undefined || names.some((name) => method.includes(name));
      row.hidden = !named || !row.textContent.toLowerCase().includes(own);
    }
  };
  byMethod.addEventListener("input", () => all("table").forEach(filterRows));
  for (const box of all(".search")) box.addEventListener("input", () => filterRows(box.closest("figure").querySelector("table")));

  // Images are stored once and shown where they are named.
  const stored = document.getElementById("images");
  const images = stored ? JSON.parse(stored.textContent) : {};
  const show = (root) => { for (const image of all("img[data-image]:not([src])", root)) image.src = images[image.dataset.image] ?? ""; };

  // Views: a list of choices hides what is about something else.
  for (const choices of all(".filters")) {
    const root = choices.dataset.filters ? document.querySelector("main") : choices.parentElement;
    const selects = all("select[data-filter]", choices);
    const apply = () => {
      for (const one of root.querySelectorAll(choices.dataset.filters ? ":scope > .setting" : ":scope > [data-setting], :scope > .table, .plot")) {
        one.hidden = selects.some((select) => {
          const own = one.dataset[select.dataset.filter];
          return select.value !== "" && own !== undefined && !own.split("|").includes(select.value);
        });
        if (!one.hidden) show(one);
      }
    };
    for (const select of selects) select.addEventListener("change", apply);
    apply();
  }
  show(document);
  document.documentElement.dataset.ready = "yes";
})();
