"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("table");
  const body = table.tBodies[0];
  const all = [...body.rows].map((row, order) => ({
    row, order,
    verdict: row.dataset.verdict,
    op: row.dataset.op,
    text: `${row.textContent} ${row.dataset.more ?? ""}`.toLowerCase(),
  }));
  const [filter, verdict, op, count] = ["filter", "filter-verdict", "filter-op", "count"].map(byId);

  function show() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = verdict.value;
    let shown = 0;
    for (const item of all) {
      const fits =
        (wanted === "*" || (wanted ? item.verdict === wanted : item.verdict !== "removed")) &&
        (!op.value || item.op === op.value) &&
        words.every((word) => item.text.includes(word));
      item.row.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${all.length} nodes`;
    byId("nothing").hidden = shown > 0;
  }

  // Numbers sort as numbers and start with the largest; cells without one stay at the end.
  function sort(head) {
    const column = head.cellIndex;
    const numeric = head.classList.contains("num");
    const first = numeric && column > 0 ? "descending" : "ascending";
    const was = head.getAttribute("aria-sort");
    const now = was === "none" ? first : was === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", now);
    const sign = now === "ascending" ? 1 : -1;
    const key = (item) => {
      const text = item.row.cells[column].textContent.trim();
      return numeric ? (text ? Number(text.replaceAll(",", "")) : null) : text;
    };
    const keyed = all.map((item) => [key(item), item]);
    keyed.sort(([a, x], [b, y]) => {
      if (a === null || b === null) return (a === null) - (b === null) || x.order - y.order;
      const difference = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
      return sign * difference || x.order - y.order;
    });
    body.append(...keyed.map(([, item]) => item.row));
  }

  for (const head of table.tHead.rows[0].cells) {
    head.firstElementChild.addEventListener("click", () => sort(head));
  }
  for (const control of [filter, verdict, op]) control.addEventListener("input", show);
  byId("clear").addEventListener("click", () => {
    filter.value = verdict.value = op.value = "";
    show();
    filter.focus();
  });
  for (const button of document.querySelectorAll("button.show")) {
    button.addEventListener("click", () => {
      verdict.value = "float";
      op.value = "";
      filter.value = button.dataset.code;
      show();
      byId("nodes").scrollIntoView();
      filter.focus({ preventScroll: true });
    });
  }
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) return;
    event.preventDefault();
    filter.focus();
  });
  show();
})();
