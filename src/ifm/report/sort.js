"use strict";
(() => {
  const table = document.getElementById("rows"), body = table.tBodies[0];
  const compare = (numeric, sign) => ([a], [b]) =>
    a === "" || b === "" ? (a === "") - (b === "") : sign * (numeric ? a - b : a.localeCompare(b));
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const ascending = head.getAttribute("aria-sort") !== "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const keyed = [...body.rows].map((row) => [row.cells[index].dataset.key, row]);
      keyed.sort(compare(head.classList.contains("n"), ascending ? 1 : -1));
      body.append(...keyed.map(([, row]) => row));
    });
  });
  document.getElementById("sort-hint").hidden = false;
})();
