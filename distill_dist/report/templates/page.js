"use strict";
// Tables sort by the column whose heading is pressed, empty cells last; a row's data-value is its number.
const valueOf = (cell) => cell.dataset.value ?? cell.textContent.trim();
const compare = (left, right) => {
  const [a, b] = [Number(left), Number(right)];
  return Number.isNaN(a) || Number.isNaN(b) ? left.localeCompare(right, undefined, { numeric: true }) : a - b;
};
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const place = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    // numbers from the largest at first, words from A
    const first = heading.classList.contains("n") ? "descending" : "ascending";
    const other = first === "descending" ? "ascending" : "descending";
    const order = heading.getAttribute("aria-sort") === first ? other : first;
    for (const each of heading.parentElement.cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    const sign = order === "descending" ? -1 : 1;
    const rows = [...body.rows].map((row) => [valueOf(row.cells[place]), row]);
    rows.sort(([a], [b]) => (a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b)));
    body.append(...rows.map(([, row]) => row));
  });
}
for (const input of document.querySelectorAll("input[data-filters]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/);
    for (const row of document.getElementById(input.dataset.filters).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });
}
// A table that is wider than its place says so.
const seeWidths = () => {
  for (const place of document.querySelectorAll(".scroll")) {
    place.classList.toggle("goes-on", place.scrollWidth > place.clientWidth + 1);
  }
};
addEventListener("resize", seeWidths);
addEventListener("toggle", seeWidths, true); // what opens has a width only then
seeWidths();
// A link to a run opens it, and paper shows all.
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", openTarget);
openTarget();
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
