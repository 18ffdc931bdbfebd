// A click on the title of a column sorts the table. Printing opens all details.

// A cell counts as the number with which it begins. Texts come after all numbers.
const key = (row, i) => {
  const text = row.cells[i].textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return Number.isNaN(number) ? [1, text] : [0, number];
};

const sort = (head) => {
  const body = head.closest("table").tBodies[0];
  const i = head.cellIndex;
  const sign = head.ariaSort === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.ariaSort = sign > 0 ? "ascending" : "descending";
  const within = (a, b) => (a[0] ? a[1].localeCompare(b[1]) : a[1] - b[1]);
  const order = (a, b) => a[0] - b[0] || sign * within(a, b);
  body.append(...[...body.rows].sort((a, b) => order(key(a, i), key(b, i))));
};

for (const button of document.querySelectorAll("th button")) {
  button.onclick = () => sort(button.parentElement);
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
