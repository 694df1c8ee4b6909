// The page of one queue: its listeners' states, its messages, and its actions.

import { ask, nextCursor } from "./api.js";
import { button, confirmed, dialog, el, hash, link, notice, panel, since, state, tableOf } from "./dom.js";
import { form } from "./forms.js";
import { historyCharts } from "./history.js";
import { listenerForm } from "./listenerform.js";
import { each, lookAtListener, poll } from "./live.js";
import { messagesPanel } from "./messages.js";
import { healthOf, problemWords } from "./words.js";

const LOOK_MS = 5000;
const COLUMNS = ["Listener", "State", "Backlog", "Oldest", "Retrying", "Parked", "Last error"];

export async function showQueue({ main, ids, signal }) {
  const found = await ask("getQueue", { ids, signal });
  const { queue } = found.body;
  const told = el("p", { class: "alert", hidden: true });
  const listeners = listenersPanel(queue, signal);
  const messages = await messagesPanel(queue, signal);
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " ›"),
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, queue.name),
      link(["queues", queue.id, "play"], "Play inbox", { class: "button" }),
      button("Rename", () => rename(queue, found.etag)),
      button("Delete", () => remove(queue), { class: "danger" }),
    ),
    el("p", { class: "quiet" }, "Queue ID ", el("code", {}, queue.id)),
    told,
    listeners.element,
    historyCharts({ operation: "getQueueStatistics", ids, signal, told }),
    messages,
  );
  poll(signal, LOOK_MS, listeners.look, told);
}

function listenersPanel(queue, signal) {
  const body = el("tbody");
  const empty = el(
    "p",
    { class: "quiet", hidden: true },
    "No listeners yet. Messages are kept: a listener that starts from the beginning gets them all.",
  );
  const table = tableOf("Listeners", COLUMNS, body, { hidden: true });
  const element = panel(
    "Listeners",
    el(
      "div",
      { class: "row" },
      button("Create listener", () => listenerForm({ queue }), { class: "primary" }),
    ),
    empty,
    table,
  );
  const rows = new Map();

  async function look() {
    const known = await allListeners(queue.id, signal);
    empty.hidden = known.length > 0;
    table.hidden = known.length === 0;
    for (const id of rows.keys()) if (!known.some((one) => one.id === id)) rows.delete(id);
    for (const one of known) if (!rows.has(one.id)) rows.set(one.id, listenerRow(queue, one));
    if (rows.size !== body.children.length) body.replaceChildren(...[...rows.values()].map((row) => row.element));
    await each(known, async (one) => {
      try {
        const { listener } = await lookAtListener(queue.id, one.id, signal);
        if (rows.has(one.id)) rows.get(one.id).draw(listener);
      } catch (error) {
        if (error.status !== 404) throw error; // it was deleted meanwhile
      }
    });
  }
  return { element, look };
}

async function allListeners(queueId, signal) {
  const found = [];
  let cursor = null;
  do {
    const { body } = await ask("listListeners", { ids: { queue_id: queueId }, query: { limit: 1000, cursor }, signal });
    found.push(...body.listeners);
    cursor = nextCursor(body);
  } while (cursor !== null);
  return found;
}

function listenerRow(queue, listener) {
  const cells = COLUMNS.map((name) => el("td", { "data-label": name }, "…"));
  const [name, condition, waiting, oldest, retrying, parked, error] = cells;
  name.replaceChildren(link(["queues", queue.id, "listeners", listener.id], listener.name, { class: "name" }));
  function draw(now) {
    name.firstChild.textContent = now.name;
    condition.replaceChildren(state(healthOf(now)));
    if (now.paused) condition.append(" ", el("span", { class: "quiet" }, now.paused));
    waiting.replaceChildren((now.lag || 0).toLocaleString());
    oldest.replaceChildren(since(now.oldest_pending_at));
    retrying.replaceChildren((now.retrying || 0).toLocaleString());
    parked.replaceChildren(now.parked ? el("span", { class: "state parked" }, now.parked.toLocaleString()) : "0");
    error.replaceChildren(now.last_error || "–");
  }
  return { element: el("tr", {}, cells), draw };
}

function rename(queue, etag) {
  dialog("Rename queue", (close) =>
    form({
      fields: [
        {
          name: "name",
          label: "Name",
          required: true,
          maxlength: 200,
          value: queue.name,
          hint: "The queue keeps its ID and its messages. New attempts carry the new name.",
        },
      ],
      submit: "Rename queue",
      cancel: () => close(),
      onSubmit: async (body) => {
        await ask("renameQueue", { ids: { queue_id: queue.id }, body, ifMatch: etag });
        close();
        window.dispatchEvent(new Event("hashchange"));
      },
    }),
  );
}

async function remove(queue) {
  const sure = await confirmed(`Delete queue “${queue.name}”?`, {
    explain: "This deletes its listeners and cancels all undelivered messages. The log keeps what happened. This can't be undone.",
    yes: "Delete queue",
  });
  if (!sure) return;
  try {
    await ask("deleteQueue", { ids: { queue_id: queue.id } });
    notice(`Queue “${queue.name}” deleted.`);
    location.hash = hash("queues");
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}
