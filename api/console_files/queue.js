// The page of one queue: its listeners' states, its messages, and its actions.

import { ask, nextCursor } from "./api.js";
import { button, confirmed, dialog, el, hash, link, notice, panel, since, state } from "./dom.js";
import { form } from "./forms.js";
import { historyCharts } from "./history.js";
import { listenerForm } from "./listenerform.js";
import { sortedList } from "./lists.js";
import { concerns, poll } from "./live.js";
import { messagesPanel } from "./messages.js";
import { changedThresholds, thresholdFields } from "./thresholds.js";
import { HEALTHS, healthOf, hostAndPath, problemWords, recentFailures } from "./words.js";

const LOOK_MS = 5000;

export async function showQueue({ main, ids, query, signal }) {
  const found = await ask("getQueue", { ids, signal });
  const { queue } = found.body;
  const told = el("p", { class: "alert", hidden: true });
  const listeners = listenersPanel(queue, query, signal);
  const messages = messagesPanel(queue, query, signal);
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " ›"),
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, queue.name),
      link(["queues", queue.id, "play"], "Play inbox", { class: "button" }),
      button("Edit", () => edit(queue, found.etag), { needs: "renameQueue" }),
      button("Delete", () => remove(queue), { needs: "deleteQueue", class: "danger" }),
    ),
    el("p", { class: "quiet" }, "Queue ID ", el("code", {}, queue.id)),
    told,
    listeners.element,
    historyCharts({ operation: "getQueueStatistics", ids, query, signal, told }),
    messages,
  );
  const about = concerns(ids, "queue", "listener", "message", "delivery", "replay");
  poll(signal, LOOK_MS, listeners.look, told, null, about);
}

function listenersPanel(queue, query, signal) {
  const empty = el(
    "p",
    { class: "quiet", hidden: true },
    "No listeners yet. Messages are kept: a listener that starts from the beginning gets them all.",
  );
  const list = sortedList({
    noun: "listener",
    columns: columnsOf(queue),
    words: (one) => `${one.name} ${one.notify_url} ${healthOf(one)}`,
    order: "listener",
    query,
  });
  list.element.hidden = true;
  const element = panel(
    "Listeners",
    el(
      "div",
      { class: "row" },
      button("Create listener", () => listenerForm({ queue }), { needs: "createListener", class: "primary" }),
    ),
    empty,
    list.element,
  );

  async function look() {
    const known = await allListeners(queue.id, signal);
    empty.hidden = known.length > 0;
    list.element.hidden = known.length === 0;
    list.show(known);
  }
  return { element, look };
}

async function allListeners(queueId, signal) {
  const found = [];
  let cursor = null;
  do {
    const asked = { limit: 1000, backlog: true, cursor };
    const { body } = await ask("listListeners", { ids: { queue_id: queueId }, query: asked, signal });
    found.push(...body.listeners);
    cursor = nextCursor(body);
  } while (cursor !== null);
  return found;
}

function columnsOf(queue) {
  const number = (name, value, cell) => ({
    name,
    down: true,
    value,
    cell: (one) => (value(one) === undefined ? "unknown" : cell ? cell(one) : value(one).toLocaleString("en")),
  });
  return [
    {
      name: "Listener",
      value: (one) => one.name,
      cell: (one) => [
        link(["queues", queue.id, "listeners", one.id], one.name, { class: "name" }),
        el("div", { class: "quiet url", title: one.notify_url }, hostAndPath(one.notify_url)),
      ],
    },
    {
      name: "State",
      value: (one) => HEALTHS.indexOf(healthOf(one)),
      cell: (one) => [state(healthOf(one)), one.paused ? el("span", { class: "quiet" }, ` ${one.paused}`) : ""],
    },
    number("Recent failures", (one) => one.recent_failures, recentFailures),
    number("Backlog", (one) => one.lag),
    {
      name: "Oldest",
      value: (one) => one.oldest_pending_at && Date.parse(one.oldest_pending_at),
      cell: (one) => since(one.oldest_pending_at),
    },
    number("Retrying", (one) => one.retrying),
    number("Parked", (one) => one.parked, (one) =>
      one.parked ? el("span", { class: "state parked" }, one.parked.toLocaleString("en")) : "0",
    ),
    { name: "Last error", value: (one) => one.last_error || null, cell: (one) => one.last_error || "–" },
  ];
}

function edit(queue, etag) {
  dialog("Edit queue", (close) =>
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
        ...thresholdFields(queue),
      ],
      submit: "Save",
      cancel: () => close(),
      onSubmit: async (given) => {
        const renamed = given.name === queue.name ? {} : { name: given.name };
        const body = { ...renamed, ...changedThresholds(given, queue) };
        if (Object.keys(body).length) await ask("renameQueue", { ids: { queue_id: queue.id }, body, ifMatch: etag });
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
