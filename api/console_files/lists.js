// A table with search, sorting and a count. The search and the order are in the address, so that a link shows them again.
//
// For: the lists of queues and listeners. Not for: loading the rows (the views), paged lists (messages.js).

import { el, redraw, tableOf } from "./dom.js";
import { count } from "./words.js";

/**
 * Create a list: {element, search, show}. show(items) draws it, again and again. search: the field that filters it.
 * noun: of an item, such as "queue". columns: {name, value, cell, down}. value(item): what the column is sorted by; a
 * missing one comes last. cell(item): its node or text, or an array of them. down: the largest value comes first.
 * words(item): the text that is searched. order: the name of the column that is sorted first.
 */
export function sortedList({ noun, columns, words, order, query }) {
  const sorted = chosen(columns, query.get("sort")) || chosen(columns, order);
  let [column, down] = sorted;
  let items = [];
  const body = el("tbody");
  const heads = columns.map((one) =>
    el("button", { type: "button", class: "sort", onclick: () => sortBy(one, one === column ? !down : Boolean(one.down)) }, one.name),
  );
  const table = tableOf(`${noun[0].toUpperCase()}${noun.slice(1)}s`, heads, body);
  const search = el("input", {
    type: "search",
    value: query.get("q") || "",
    placeholder: `Search ${noun}s`,
    "aria-label": `Search ${noun}s`,
    "data-search": true,
    oninput: () => changed(),
  });
  // On a phone the table has no heads to click on.
  const choice = el(
    "select",
    {
      "aria-label": "Sort by",
      class: "phone",
      onchange: () => sortBy(...chosen(columns, choice.value)),
    },
    columns.map((one) => el("option", { value: one.name }, `Sort by ${one.name.toLowerCase()}`)),
  );
  const status = el("span", { class: "quiet", role: "status" });
  const none = el("p", { class: "quiet", hidden: true }, `No ${noun} matches the search.`);
  const tools = el("div", { class: "row tools" }, search, choice, status);
  const element = el("div", {}, tools, none, table);

  function sortBy(wanted, downwards) {
    column = wanted;
    down = downwards;
    changed();
  }

  function changed() {
    const first = chosen(columns, order);
    const kept = column === first[0] && down === first[1];
    putQuery({ q: search.value, sort: kept ? "" : `${down === Boolean(column.down) ? "" : "-"}${column.name.toLowerCase()}` });
    draw();
  }

  function draw() {
    const text = search.value.trim().toLowerCase();
    const found = items.filter((one) => words(one).toLowerCase().includes(text));
    const ordered = found.sort((one, other) => compared(column.value(one), column.value(other), down));
    redraw(
      body,
      ordered.map((one) => el("tr", {}, columns.map(({ name, cell }) => el("td", { "data-label": name }, cell(one))))),
    );
    columns.forEach((one, index) => {
      const head = table.tHead.rows[0].cells[index];
      if (one === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    choice.value = column.name;
    status.textContent = found.length === items.length ? count(items.length, noun) : `${found.length} of ${count(items.length, noun)}`;
    table.hidden = found.length === 0;
    none.hidden = found.length > 0 || items.length === 0;
    tools.hidden = items.length === 0;
  }

  return {
    element,
    search,
    show(now) {
      items = [...now];
      draw();
    },
  };
}

/** Return the column and the direction that a text names, such as “backlog”; a leading hyphen turns the direction. */
function chosen(columns, text) {
  const name = (text || "").replace(/^-/, "").toLowerCase();
  const column = columns.find((one) => one.name.toLowerCase() === name);
  return column ? [column, Boolean(column.down) !== (text || "").startsWith("-")] : null;
}

function compared(one, other, down) {
  const [noOne, noOther] = [one, other].map((value) => value === null || value === undefined);
  if (noOne || noOther) return Number(noOne) - Number(noOther);
  const order = typeof one === "string" ? one.localeCompare(other, undefined, { numeric: true }) : one - other;
  return down ? -order : order;
}

/** Put values into the query of the page's address; an empty one is left out. */
export function putQuery(values) {
  const [path, query = ""] = location.hash.split("?");
  const now = new URLSearchParams(query);
  for (const [name, value] of Object.entries(values)) {
    if (value) now.set(name, value);
    else now.delete(name);
  }
  history.replaceState(null, "", now.size ? `${path}?${now}` : path);
}
