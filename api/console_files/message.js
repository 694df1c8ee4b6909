// The page of one message: its data, and for each listener the steps of its delivery.
//
// For: what is loaded, and the buttons. Not for: the steps (timeline.js).

import { ask, session, whyNot } from "./api.js";
import { copyText, curlText } from "./curl.js";
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
} from "./dom.js";
import { form } from "./forms.js";
import { concerns, poll } from "./live.js";
import { namesOf } from "./logwords.js";
import { timeline } from "./timeline.js";
import { bytes, deliveryCounts, deliverySentence, indented, problemWords } from "./words.js";

const LOOK_MS = 3000;
const SECOND_MS = 1000;
const SHOWN_CHARACTERS = 50_000;
const STORY_MAX = 1000; // events of one message

export async function showMessage({ main, ids, signal }) {
  const queue = (await ask("getQueue", { ids, signal })).body.queue;
  const { message } = (await ask("getMessage", { ids, signal })).body;
  const told = el("p", { class: "alert", hidden: true });
  const summary = el("span", { class: "badges", role: "status" });
  const deliveries = el("div");
  const known = { message, listeners: new Map(), story: [], storyOf: null, members: [] };
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " › ", link(["queues", queue.id], queue.name, { title: `ID ${queue.id}` }), " ›"),
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, message.name),
      button("Copy as curl", () => copyText(curlText(queue.id, known.message), "Command")),
      button("Copy ID", () => copyText(message.id, "ID"), { title: message.id }),
      el(
        "a",
        { class: "button", href: `${hash("log")}?message=${encodeURIComponent(message.id)}` },
        "Show events in the log",
      ),
      button("Edit data", () => change(queue, ids, signal), { needs: "updateMessage" }),
      button("Delete", () => remove(queue, message), { needs: "deleteMessage", class: "danger" }),
    ),
    facts([
      ["Deliveries", summary],
      ["Put at", moment(message.created_at)],
      message.updated_at ? ["Changed at", moment(message.updated_at)] : null,
      message.key !== null ? ["Ordering key", message.key] : null,
      message.deliver_at ? ["Not before", moment(message.deliver_at)] : null,
      ["Size", bytes(message.size)],
      ["Message ID", el("code", {}, message.id)],
    ]),
    told,
    panel("Deliveries", deliveries),
    dataPanel(message.data),
  );
  const draw = () => drawDeliveries(queue, known, summary, deliveries);
  const look = async () => {
    await load(queue, ids, known, signal);
    draw();
    if (await loadStory(queue, known, signal)) draw();
  };
  const timer = setInterval(draw, SECOND_MS); // “in 12 s” counts down
  signal.addEventListener("abort", () => clearInterval(timer));
  draw();
  poll(signal, LOOK_MS, look, told, null, concerns({ queue_id: queue.id }, "message", "delivery", "listener"));
}

/** Load the message, and if a delivery is not finished, the listeners of its queue. */
async function load(queue, ids, known, signal) {
  known.message = (await ask("getMessage", { ids, signal })).body.message;
  if (deliveriesOf(known).every((one) => one.state === "delivered")) return;
  const asked = { limit: 1000, backlog: true };
  const { body } = await ask("listListeners", { ids: { queue_id: queue.id }, query: asked, signal });
  known.listeners = new Map(body.listeners.map((one) => [one.id, one]));
}

/**
 * Load what the message itself does not tell: who retried a delivery, and when. Resolves to whether something is new.
 * A message that every listener took at once has no such events. Some roles may not read the log.
 */
async function loadStory(queue, known, signal) {
  const states = deliveriesOf(known);
  const now = JSON.stringify([known.message.updated_at, states.map((one) => [one.state, one.attempts.length])]);
  const quiet = states.every((one) => one.attempts.length <= 1 && one.state !== "parked") && !known.message.updated_at;
  if (quiet || known.storyOf === now || whyNot("readLog")) return false;
  const query = { message: known.message.id, type: "message,listener.redriven,listener.redrives_cancelled,delivery.attempted,replay.started", limit: STORY_MAX };
  const ids = { organization_id: session.organization.id };
  const [{ body }, members] = await Promise.all([ask("readLog", { query, signal }), ask("listMembers", { ids, signal })]);
  known.story = body.filter((one) => one.event).map((one) => one.event);
  known.members = members.body.members;
  known.storyOf = now;
  return true;
}

function deliveriesOf(known) {
  return known.message.listeners || [];
}

/** Return the state of a delivery as lists of messages name it: `scheduled` is pending until the message's time. */
function stateOf(message, delivery) {
  const waits = message.deliver_at && Date.parse(message.deliver_at) > Date.now();
  return delivery.state === "pending" && waits ? "scheduled" : delivery.state;
}

function drawDeliveries(queue, known, summary, deliveries) {
  const states = deliveriesOf(known);
  const open = new Set([...deliveries.querySelectorAll("details[open]")].map((one) => one.dataset.attempt));
  const { actor } = namesOf([queue], [], known.members);
  const counted = states.map((one) => ({ ...one, state: stateOf(known.message, one), attempts: one.attempts.length }));
  redraw(summary, deliveryCounts(counted).map((one) => el("span", { class: `state ${one.state}`, title: one.names }, one.text)));
  const boxes = states.map((one) => {
    const steps = timeline(known.message, one, known.story, (text) => actor(text) || "Everput", open);
    return deliveryBox(queue, known.message, one, known.listeners.get(one.id) || null, steps);
  });
  redraw(
    deliveries,
    ...(boxes.length ? boxes : [el("p", { class: "quiet" }, "No listener of this queue gets this message.")]),
  );
}

function deliveryBox(queue, message, delivery, listener, steps) {
  const ids = { queue_id: queue.id, listener_id: delivery.id };
  const named = { "data-listener": delivery.id, "aria-label": `Retry now: ${delivery.name}`, needs: "redriveListener" };
  const owed = delivery.state === "parked" || delivery.state === "retrying";
  return el(
    "article",
    { class: "delivery" },
    el("h3", {}, state(stateOf(message, delivery)), " ", link(["queues", queue.id, "listeners", delivery.id], delivery.name, { title: `ID ${delivery.id}` })),
    el("p", {}, deliverySentence(delivery, listener, message, Date.now())),
    owed
      ? button("Retry now", () => act("redriveListener", ids, { messages: [message.id] }, "Retrying."), named)
      : null,
    listener && listener.paused
      ? button(
          "Resume listener",
          () => act("resumeListener", ids, undefined, "The listener is resumed."),
          { ...named, "aria-label": `Resume listener ${delivery.name}`, needs: "resumeListener" },
        )
      : null,
    steps,
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
