// The page of one message: its data, and why it is or is not delivered to each listener.

import { ask } from "./api.js";
import {
  button,
  confirmed,
  dialog,
  el,
  facts,
  hash,
  link,
  moment,
  notice,
  panel,
  redraw,
  state,
  table,
} from "./dom.js";
import { form } from "./forms.js";
import { each, lookAtListener, poll } from "./live.js";
import {
  count,
  deliverySentence,
  indented,
  outcome,
  problemWords,
  replyText,
  shortened,
  stepsWords,
  took,
} from "./words.js";

const LOOK_MS = 3000;
const SHOWN_CHARACTERS = 50_000;

export async function showMessage({ main, ids, signal }) {
  const queue = (await ask("getQueue", { ids, signal })).body.queue;
  const { message } = (await ask("getMessage", { ids, signal })).body;
  const told = el("p", { class: "alert", hidden: true });
  const deliveries = el("div");
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " › ", link(["queues", queue.id], queue.name), " ›"),
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, message.name),
      el(
        "a",
        { class: "button", href: `${hash("log")}?message=${encodeURIComponent(message.id)}` },
        "Show events in the log",
      ),
      button("Edit data", () => change(queue, ids, signal), { needs: "updateMessage" }),
      button("Delete", () => remove(queue, message), { needs: "deleteMessage", class: "danger" }),
    ),
    facts([
      ["Message ID", el("code", {}, message.id)],
      ["Put at", moment(message.created_at)],
      message.updated_at ? ["Changed at", moment(message.updated_at)] : null,
      message.key !== null ? ["Ordering key", message.key] : null,
      message.deliver_at ? ["Not before", moment(message.deliver_at)] : null,
    ]),
    told,
    panel("Deliveries", deliveries),
    dataPanel(message.data),
  );
  poll(signal, LOOK_MS, () => look(queue, ids, deliveries, signal), told);
}

async function look(queue, ids, deliveries, signal) {
  const { message } = (await ask("getMessage", { ids, signal })).body;
  const states = message.listeners || [];
  const listeners = new Map();
  await each(
    states.filter((one) => one.state !== "delivered"),
    async (one) => {
      try {
        listeners.set(one.id, (await lookAtListener(queue.id, one.id, signal)).listener);
      } catch (error) {
        if (error.status !== 404) throw error; // it was deleted meanwhile
      }
    },
  );
  const open = new Set([...deliveries.querySelectorAll("details[open]")].map((one) => one.dataset.listener));
  const boxes = states.map((one) => deliveryBox(queue, message, one, listeners.get(one.id) || null, open));
  redraw(
    deliveries,
    ...(boxes.length ? boxes : [el("p", { class: "quiet" }, "No listener of this queue gets this message.")]),
  );
}

function deliveryBox(queue, message, delivery, listener, open) {
  const attempts = delivery.attempts.map((one) => [
    String(one.number),
    moment(one.at),
    outcome(one.status, one.error),
    `${took(one.took_ms)}${stepsWords(one)}`,
    one.answer ? reply(one.answer, `${delivery.id} ${one.number}`, open) : "–",
  ]);
  const ids = { queue_id: queue.id, listener_id: delivery.id };
  const named = { "data-listener": delivery.id };
  const owed = delivery.state === "parked" || delivery.state === "retrying";
  return el(
    "article",
    { class: "delivery" },
    el("h3", {}, state(delivery.state), " ", link(["queues", queue.id, "listeners", delivery.id], delivery.name)),
    el("p", {}, deliverySentence(delivery, listener, message, Date.now())),
    owed
      ? button("Retry now", () => act("redriveListener", ids, { messages: [message.id] }, "Retrying."), named)
      : null,
    listener && listener.paused
      ? button(
          "Resume listener",
          () => act("resumeListener", ids, undefined, "The listener is resumed."),
          named,
        )
      : null,
    attempts.length
      ? el(
          "details",
          { open: open.has(delivery.id), "data-listener": delivery.id },
          el("summary", {}, count(attempts.length, "attempt")),
          table(`Attempts to deliver to ${delivery.name}`, ["Attempt", "Time", "Result", "Duration", "Answer"], attempts, ""),
        )
      : null,
  );
}

/** Create the part that shows what a listener answered, and to what. Its text is the listener's, and stays text. */
function reply(answer, name, open) {
  return el(
    "details",
    { open: open.has(name), "data-listener": name },
    el("summary", {}, shortened(answer.body, 80) || count(answer.headers.length, "header")),
    el("pre", {}, replyText(answer)),
  );
}

async function act(name, ids, body, done) {
  try {
    await ask(name, { ids, body });
    notice(done);
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}

function dataPanel(data) {
  const formatted = indented(data);
  let text = formatted === null ? data : formatted;
  const shown = el("pre", { tabindex: "0", "aria-label": "Message data" });
  const all = button("Show all", () => draw(text.length), { hidden: true });
  function draw(length) {
    shown.textContent = text.slice(0, length);
    all.hidden = text.length <= length;
  }
  const asPut = el("input", {
    type: "checkbox",
    onchange: () => {
      text = asPut.checked || formatted === null ? data : formatted;
      draw(SHOWN_CHARACTERS);
    },
  });
  draw(SHOWN_CHARACTERS);
  const choice =
    formatted === null || formatted === data ? null : el("label", { class: "choice" }, asPut, "Show exactly as put");
  return panel("Data", choice, shown, all);
}

async function change(queue, ids, signal) {
  try {
    const { body: known, etag } = await ask("getMessage", { ids, signal });
    await dialog("Edit data", (close) =>
      form({
        fields: [
          {
            name: "data",
            label: "Data",
            type: "textarea",
            rows: 10,
            value: known.message.data,
            hint: "Listeners that do not have the message yet get the new data.",
          },
        ],
        submit: "Save",
        cancel: () => close(),
        onSubmit: async (given) => {
          // A text field changes line ends: if the text is otherwise unchanged, keep the data as it was put.
          if (given.data.replace(/\r\n?/g, "\n") === known.message.data.replace(/\r\n?/g, "\n")) return close();
          const { body } = await ask("updateMessage", { ids, body: { data: given.data }, ifMatch: etag });
          close();
          had("Data changed.", body.message);
          return window.dispatchEvent(new Event("hashchange"));
        },
      }),
    );
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

/** Show a notice that names the listeners that already had the message. */
function had(done, message) {
  const names = message.listeners.filter((one) => one.state === "delivered").map((one) => one.name);
  notice(names.length ? `${done} Already delivered before: ${names.join(", ")}.` : `${done} No listener had it before.`);
}

async function remove(queue, message) {
  const sure = await confirmed("Delete message?", {
    explain:
      "This cancels the deliveries that are not made yet. Listeners that have the message keep it, and the log keeps what happened. This can't be undone.",
    yes: "Delete message",
  });
  if (!sure) return;
  try {
    const { body } = await ask("deleteMessage", { ids: { queue_id: queue.id, message_id: message.id } });
    had("Message deleted.", body.message);
    location.hash = hash("queues", queue.id);
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}
