for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.querySelectorAll("th").forEach((heading, index) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const falls = heading.getAttribute("aria-sort") === "descending" || !heading.classList.contains("number") && !heading.hasAttribute("aria-sort");
      const key = (row) => row.cells[index].dataset.key ?? row.cells[index].textContent;
      const compare = (a, b) => heading.classList.contains("number") ? key(a) - key(b) : key(a).localeCompare(key(b), undefined, { numeric: true });
      const rows = [...table.tBodies[0].rows].sort((a, b) => falls ? compare(a, b) : compare(b, a));
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falls ? "ascending" : "descending");
      table.tBodies[0].append(...rows);
    });
  });
}
