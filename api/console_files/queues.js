// The list of the organization's queues, with each queue's backlog and its listeners' states.

import { ask, nextCursor } from "./api.js";
import { button, dialog, el, hash, link, notice, since, state, tableOf } from "./dom.js";
import { form } from "./forms.js";
import { poll, visibleRows } from "./live.js";

const LOOK_MS = 5000;
const PAGE = 50;
const COLUMNS = ["Queue", "Listeners", "Backlog", "Oldest", "Parked"];

export async function showQueues({ main, signal }) {
  const body = el("tbody");
  const told = el("p", { class: "alert", hidden: true });
  const damaged = el(
    "p",
    { class: "alert", role: "status", hidden: true },
    "Part of the log can't be read. Deliveries that may be affected are parked with the error “damaged”; all others ",
    "continue. The operator of this installation can see what is damaged.",
  );
  const empty = el(
    "div",
    { class: "panel", hidden: true },
    el(
      "p",
      {},
      "No queues yet. Programs put messages on a queue; every listener of the queue gets every message.",
    ),
    el("div", { class: "row" }, button("Create queue", createQueue, { class: "primary" }), link(["start"], "Get started")),
  );
  const more = button("Show more", () => addPage(), { hidden: true });
  const table = tableOf("Queues", COLUMNS, body);
  const find = el("input", { type: "search", placeholder: "Exact queue name", "aria-label": "Find a queue by its exact name" });
  const search = el("form", { class: "find", role: "search" }, find, el("button", { type: "submit" }, "Find"));
  search.addEventListener("submit", (event) => {
    event.preventDefault();
    findQueue(find.value);
  });
  const visible = visibleRows();
  const pages = [];
  let cursor = null;

  async function addPage() {
    const shown = { cursor, rows: new Map(), lookedMs: 0 };
    const { queues, next } = await pageOf(cursor, 1, {}, signal);
    for (const queue of queues) {
      const row = queueRow(queue);
      shown.rows.set(queue.id, row);
      body.append(row.element);
      visible.watch(row.element);
    }
    pages.push(shown);
    cursor = next;
    more.hidden = cursor === null;
    empty.hidden = body.rows.length > 0;
    table.hidden = body.rows.length === 0;
  }

  await addPage();
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Queues"),
      search,
      button("Create queue", createQueue, { class: "primary" }),
    ),
    told,
    damaged,
    empty,
    el("div", { class: "panel flush" }, table),
    more,
  );
  poll(
    signal,
    LOOK_MS,
    async () => {
      const begunMs = Date.now();
      const { organizations } = (await ask("listOrganizations", { signal })).body;
      damaged.hidden = !organizations.some((one) => one.log_damaged);
      // Refresh each page with a row on the screen once; scrolling brings other rows there meanwhile.
      const isSeen = (page) => [...page.rows.values()].some((row) => visible.has(row.element));
      const isDue = (page) => isSeen(page) && page.lookedMs < begunMs - 0.8 * LOOK_MS;
      for (let page; (page = pages.find(isDue));) {
        page.lookedMs = Date.now();
        const { queues } = await pageOf(page.cursor, page.rows.size, { health: true, backlog: true }, signal);
        const found = new Map(queues.map((queue) => [queue.id, queue]));
        for (const [id, row] of page.rows) {
          if (found.has(id)) {
            row.draw(found.get(id));
          } else {
            page.rows.delete(id); // it was deleted meanwhile
            row.element.remove();
          }
        }
      }
    },
    told,
    visible.appeared,
  );
}

/**
 * Load at least `count` queues from a cursor on, if there are so many: {queues, next}. The server ends a page early if its
 * queues have many listeners.
 */
async function pageOf(cursor, count, shown, signal) {
  const queues = [];
  do {
    const page = (await ask("listQueues", { query: { limit: PAGE, cursor, ...shown }, signal })).body;
    queues.push(...page.queues);
    cursor = nextCursor(page);
  } while (cursor !== null && queues.length < count);
  return { queues, next: cursor };
}

/** Create a row: {element, draw}. draw() shows a queue with its health and its backlog. */
function queueRow(queue) {
  const cells = COLUMNS.map((name) => el("td", { "data-label": name }, "…"));
  const [name, listeners, waiting, oldest, parked] = cells;
  name.replaceChildren(link(["queues", queue.id], queue.name, { class: "name" }));
  function draw(now) {
    const unknown = () => el("span", { class: "quiet" }, "unknown");
    const some = now.listeners.length > 0;
    if (!now.health) listeners.replaceChildren(unknown());
    else if (!some) listeners.replaceChildren(el("span", { class: "quiet" }, "none"));
    else
      listeners.replaceChildren(
        ...Object.entries(now.health).flatMap(([word, many]) => [state(word), many > 1 ? ` × ${many} ` : " "]),
      );
    if (now.lag === undefined) waiting.replaceChildren(unknown());
    else waiting.replaceChildren(some ? now.lag.toLocaleString() : "–");
    oldest.replaceChildren(since(now.oldest_pending_at));
    if (now.parked === undefined) parked.replaceChildren(unknown());
    else if (now.parked) parked.replaceChildren(el("span", { class: "state parked" }, now.parked.toLocaleString()));
    else parked.replaceChildren(some ? "0" : "–");
  }
  return { element: el("tr", {}, cells), draw };
}

async function findQueue(name) {
  if (!name) return;
  const found = (await ask("listQueues", { query: { name } })).body.queues;
  if (found.length) location.hash = hash("queues", found[0].id);
  else notice(`No queue is named “${name}”.`);
}

function createQueue() {
  dialog("Create queue", (close) =>
    form({
      fields: [
        {
          name: "name",
          label: "Name",
          required: true,
          maxlength: 200,
          hint: "For example myapp.io/orders. You can rename the queue later.",
        },
      ],
      submit: "Create queue",
      cancel: () => close(),
      onSubmit: async (body) => {
        const { queue } = (await ask("createQueue", { body })).body;
        close();
        notice(`Queue “${queue.name}” created. Add a listener to deliver its messages.`);
        location.hash = hash("queues", queue.id);
      },
    }),
  );
}
