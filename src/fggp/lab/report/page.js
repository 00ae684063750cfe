"use strict";
{
  const table = document.getElementById("runs-table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  const details = document.getElementById("details");
  const { shared, runs: settings } = JSON.parse(document.getElementById("runs-details").textContent);

  // Sorting: by the values that the cells carry, up and then down; what has no value stays last.
  const order = new Intl.Collator("en", { numeric: true });
  const value = (row, column) => row.cells[column].dataset.sort;
  const compare = (one, other, numeric) => (numeric ? one - other : order.compare(one, other));

  function sort(column) {
    const head = heads[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    const numeric = head.classList.contains("number");
    rows.sort((a, b) => {
      const [one, other] = [value(a, column), value(b, column)];
      if (one === "" || other === "") return (one === "") - (other === "");
      return down ? compare(other, one, numeric) : compare(one, other, numeric);
    });
    body.append(...rows);
    for (const each of heads) each.setAttribute("aria-sort", each === head ? (down ? "descending" : "ascending") : "none");
    enter(visible()[0]);
  }
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sort(column)));

  // Filtering: a run stays if each word is in what it shows or in its own settings.
  const filter = document.getElementById("filter");
  const count = document.getElementById("count");
  const said = new Map(rows.map((row) => {
    const own = settings[row.dataset.run].own.map((pair) => pair.join(" "));
    return [row, [row.textContent.replace(/\s+/g, " "), ...own].join(" ").toLowerCase()];
  }));
  const visible = () => rows.filter((row) => !row.hidden);

  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => said.get(row).includes(word));
    const left = visible();
    count.textContent = left.length === rows.length ? `${rows.length} runs` : `${left.length} of ${rows.length} runs`;
    enter(left[0]);
  });

  // One row can be reached by Tab, the others from there by the arrows.
  function enter(row) {
    for (const each of rows) each.tabIndex = each === row ? 0 : -1;
  }

  body.addEventListener("keydown", (event) => {
    const left = visible();
    const at = left.indexOf(event.target.closest("tr"));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: left.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined || !left[to]) return;
    event.preventDefault();
    enter(left[to]);
    left[to].focus();
  });

  // A run's settings, where it is pointed at or focused.
  function list(pairs) {
    const element = document.createElement("dl");
    element.className = "settings";
    for (const [name, text] of pairs) {
      const pair = document.createElement("div");
      for (const [tag, content] of [["dt", name], ["dd", text]]) {
        pair.append(Object.assign(document.createElement(tag), { textContent: content }));
      }
      element.append(pair);
    }
    return element;
  }

  let shown;
  function show(row, left = false) {
    const { name, own, known } = settings[row.dataset.run];
    details.replaceChildren(Object.assign(document.createElement("h4"), { textContent: name }), list(own), list(shared), list(known));
    details.hidden = false;
    shown = row;
    // Above or below what is pointed at, on the other side of the window.
    details.style.left = left ? "1rem" : "auto";
    details.style.right = left ? "auto" : "1rem";
    const box = row.getBoundingClientRect();
    const above = box.top > innerHeight / 2;
    details.style.top = above ? "auto" : `${Math.max(box.bottom + 10, 10)}px`;
    details.style.bottom = above ? `${Math.max(innerHeight - box.top + 10, 10)}px` : "auto";
    details.style.maxHeight = `${(above ? box.top : innerHeight - box.bottom) - 24}px`;
  }

  function hide() {
    details.hidden = true;
  }

  const rowOf = (event) => event.target.closest("tr[data-run]");
  body.addEventListener("pointermove", (event) => {
    const row = rowOf(event);
    if (row && (details.hidden || row !== shown)) show(row, event.clientX > innerWidth / 2);
  });
  body.addEventListener("pointerleave", hide);
  body.addEventListener("focusin", (event) => {
    enter(rowOf(event));
    show(rowOf(event));
  });
  body.addEventListener("focusout", hide);
  document.getElementById("runs-scroll").addEventListener("scroll", () => details.hidden || hide());

  // A method that is pointed at in a table or picture stands out in all pictures.
  function pick(series) {
    document.body.classList.toggle("picking", series !== undefined);
    for (const group of document.querySelectorAll(".picture .series")) {
      group.classList.toggle("picked", group.dataset.series === series);
    }
  }
  for (const element of document.querySelectorAll("[data-series]")) {
    element.addEventListener("pointerenter", () => pick(element.dataset.series));
    element.addEventListener("pointerleave", () => pick(undefined));
  }

  // Folded parts are printed too.
  const folded = () => document.querySelectorAll("details");
  addEventListener("beforeprint", () => folded().forEach((part) => { part.dataset.was = part.open; part.open = true; }));
  addEventListener("afterprint", () => folded().forEach((part) => { part.open = part.dataset.was === "true"; }));
}
