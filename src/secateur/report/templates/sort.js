for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.querySelectorAll("th").forEach((heading, index) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const rises = heading.getAttribute("aria-sort") === "descending" || !heading.classList.contains("number") && !heading.hasAttribute("aria-sort");
      const key = (row) => row.cells[index].dataset.key ?? row.cells[index].textContent;
      const compare = (a, b) => heading.classList.contains("number") ? a - b : a.localeCompare(b, undefined, { numeric: true });
      const order = (a, b) => !key(a) - !key(b) || (rises ? compare(key(a), key(b)) : compare(key(b), key(a)));
      const rows = [...table.tBodies[0].rows].sort(order);
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", rises ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
