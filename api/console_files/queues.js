// The list of the organization's queues, with each queue's backlog and its listeners' states.

import { ask, nextCursor } from "./api.js";
import { button, dialog, el, hash, link, notice, since, state, tableOf } from "./dom.js";
import { form } from "./forms.js";
import { each, lookAtListener, poll, visibleRows } from "./live.js";
import { healthOf } from "./words.js";

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
    button("Create queue", createQueue, { class: "primary" }),
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
  const rows = new Map();
  let cursor = null;

  async function addPage() {
    const page = (await ask("listQueues", { query: { limit: PAGE, cursor }, signal })).body;
    for (const queue of page.queues) {
      const row = queueRow(queue);
      rows.set(row.element, row);
      body.append(row.element);
      visible.watch(row.element);
    }
    cursor = nextCursor(page);
    more.hidden = cursor === null;
    empty.hidden = rows.size > 0;
    table.hidden = rows.size === 0;
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
      // Refresh each row on the screen once; scrolling brings other rows there meanwhile.
      const isDue = (row) => visible.has(row.element) && row.lookedMs < begunMs - 0.8 * LOOK_MS;
      for (let row; (row = [...rows.values()].find(isDue));) {
        try {
          await row.look(signal);
        } catch (error) {
          if (error.status !== 404) throw error;
          rows.delete(row.element); // it was deleted meanwhile
          row.element.remove();
        }
      }
    },
    told,
    visible.appeared,
  );
}

/** Create a row: {element, look}. look() refreshes it. */
function queueRow(queue) {
  const cells = COLUMNS.map((name) => el("td", { "data-label": name }, "…"));
  const [name, listeners, waiting, oldest, parked] = cells;
  name.replaceChildren(link(["queues", queue.id], queue.name, { class: "name" }));
  const row = { element: el("tr", {}, cells), look, lookedMs: 0 };
  async function look(signal) {
    row.lookedMs = Date.now();
    const known = (await ask("getQueue", { ids: { queue_id: queue.id }, signal })).body.queue.listeners;
    const now = [];
    await each(known, async (one) => {
      try {
        now.push((await lookAtListener(queue.id, one.id, signal)).listener);
      } catch (error) {
        if (error.status !== 404) throw error; // it was deleted meanwhile
      }
    });
    draw(now);
  }
  function draw(now) {
    const states = new Map();
    for (const one of now) states.set(healthOf(one), (states.get(healthOf(one)) || 0) + 1);
    const words = [...states].map(([word, many]) => [state(word), many > 1 ? ` × ${many} ` : " "]);
    listeners.replaceChildren(...(now.length ? words.flat() : [el("span", { class: "quiet" }, "none")]));
    const lag = now.reduce((sum, one) => sum + (one.lag || 0), 0);
    waiting.replaceChildren(now.length ? lag.toLocaleString() : "–");
    const times = now
      .map((one) => one.oldest_pending_at)
      .filter(Boolean)
      .sort();
    oldest.replaceChildren(since(times[0]));
    const piles = now.reduce((sum, one) => sum + (one.parked || 0), 0);
    parked.replaceChildren(piles ? el("span", { class: "state parked" }, piles.toLocaleString()) : now.length ? "0" : "–");
  }
  return row;
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
