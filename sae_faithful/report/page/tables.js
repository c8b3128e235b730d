// Tables that sort by any column: buttons in their heads, aria-sort for those who listen.
"use strict";

function sortValue(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.sort ?? cell.textContent.trim();
  if (text === "") return null;
  const number = Number(text.replaceAll(",", ""));
  return Number.isNaN(number) ? text.toLowerCase() : number;
}

function compare(one, other) {
  if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
  return typeof one === "number" ? -1 : 1;
}

function sortBy(head) {
  const table = head.closest("table");
  const descending = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("group"));
    const keyed = rows.map((row) => [sortValue(row, head.cellIndex), row]);
    // What has no value is last, whichever way.
    keyed.sort(([one], [other]) => {
      if (one === null || other === null) return (one === null) - (other === null);
      return descending ? compare(other, one) : compare(one, other);
    });
    body.append(...keyed.map(([, row]) => row));
  }
}

document.addEventListener("click", (event) => {
  const head = event.target.closest?.("table.sortable thead th");
  if (head && event.target.closest("button")) sortBy(head);
});

// A cell is text, an element, or { show, sort }.
function makeTable(label, heads, rows, caption) {
  const body = rows.map((row) => make("tr", {}, row.map((cell, place) => {
    const { show, sort } = cell !== null && typeof cell === "object" && "show" in cell ? cell : { show: cell };
    const number = typeof sort === "number" || (sort === null && place > 0);
    const attributes = { "data-sort": sort === undefined ? null : sort ?? "", class: number ? "number" : null };
    return place === 0 ? make("th", { scope: "row", ...attributes }, show) : make("td", attributes, show);
  })));
  const box = make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    make("table", { class: "sortable", "aria-label": label },
      make("thead", {}, make("tr", {}, heads.map((head) =>
        make("th", { scope: "col", "aria-sort": "none" }, make("button", { type: "button" }, head))))),
      make("tbody", {}, body)));
  return make("div", {}, caption ? make("p", { class: "caption" }, caption) : null, box);
}
