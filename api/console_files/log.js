// The page of the log: one line for each event, newest first, with names in place of IDs.
//
// The API returns the log oldest first. So this page reads short ranges of time, the newest first, and reverses them.

import { ask, nextCursor, session, whyNot } from "./api.js";
import { button, el, loadMore, redraw } from "./dom.js";
import { putQuery } from "./lists.js";
import { poll } from "./live.js";
import { eventSentence, KINDS, namesOf } from "./logwords.js";
import { count } from "./words.js";

const FIRST = 60; // events that a page shows at least, if there are so many
const AT_ONCE = 1000;
const SHOWN_MAX = 2000;
const FOLLOW_MS = 3000;
const SETTLED_MS = 2500; // the server waits for events that are newer than this
const SPAN_MS = 60_000;
const BACK_MS = 24 * 3_600_000;
const MADE_MS = 30 * BACK_MS; // names are looked for so long before an event
const GROWTH = 6;
const TOP_PX = 120; // a reader who is no further down sees the newest event
const FILTERS = ["type", "queue", "listener", "from", "to", "message", "actor"];

export async function showLog({ main, query, signal }) {
  const list = el("ol", { class: "events", "aria-label": "Events, newest first" });
  const told = el("p", { class: "alert", role: "alert", hidden: true });
  const status = el("p", { class: "quiet", role: "status" });
  const fresh = button("", () => showFresh(), { class: "primary fresh", hidden: true });
  const older = button("Show older", () => said(readOlder), { hidden: true });
  const follow = el("input", { type: "checkbox", checked: true, onchange: () => sooner.dispatchEvent(new Event("look")) });
  const sooner = new EventTarget();
  const filters = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) || ""]));
  const [names, queues] = await knownNames(signal);
  const fields = filterFields(filters, queues, () => said(restart));
  const known = new Set(); // positions of the events that are shown or wait
  const nameless = new Set(); // IDs whose names were not found
  let waiting = []; // newer events that the reader has not asked to see, newest first
  let cursor = null; // where to follow from
  let topComplete = true;
  let oldestMs = 0; // the events before this time are not loaded
  let floorMs = 0;
  let reading = 0;

  async function restart() {
    putQuery(filters);
    fields.show();
    known.clear();
    waiting = [];
    list.replaceChildren();
    cursor = null;
    reading += 1;
    oldestMs = filters.to ? Date.parse(filters.to) : Date.now() - SETTLED_MS;
    floorMs = filters.from ? Date.parse(filters.from) : oldestMs - BACK_MS;
    draw();
    status.textContent = "Loading…";
    if (filters.message) await readStory();
    else await readOlder();
  }

  /** Load all events of a message. */
  async function readStory() {
    const found = await read({});
    if (!found) return;
    ({ cursor } = found);
    list.replaceChildren(...unknown(found.events).map(row));
    oldestMs = floorMs = 0;
    draw();
  }

  /** Load the next older events, in ranges of time that begin short and grow. */
  async function readOlder() {
    const goal = list.children.length + FIRST;
    let spanMs = SPAN_MS;
    while (oldestMs > floorMs && list.children.length < goal) {
      const fromMs = Math.max(floorMs, oldestMs - spanMs);
      const found = await read({ from: at(fromMs), to: at(oldestMs) });
      if (!found) return;
      if (!found.complete && oldestMs - fromMs > 1) {
        spanMs = Math.max(1, Math.floor((oldestMs - fromMs) / 10));
        continue;
      }
      if (cursor === null) ({ cursor } = found);
      list.append(...unknown(found.events).map(row));
      oldestMs = fromMs;
      spanMs *= found.events.length * 4 > FIRST ? 1 : GROWTH;
      draw();
    }
    draw();
  }

  /** Read events of the log: {events, cursor, complete}, newest first; null if the filters have changed meanwhile. */
  async function read(range) {
    const mine = reading;
    const { type, queue, listener, message, actor } = filters;
    const asked = { type, queue, listener, message, actor, limit: AT_ONCE, ...range };
    const { body } = await ask("readLog", { query: asked, signal });
    if (mine !== reading) return null;
    const { cursor: after, complete } = body[body.length - 1];
    const events = body.filter((one) => one.event).reverse();
    await learnNames(events);
    return mine === reading ? { events, cursor: after, complete } : null;
  }

  /** Learn the names of deleted listeners and of replays in these events. Deliveries of a replay carry its ID as listener_id. */
  async function learnNames(events) {
    const unnamed = ({ event }) => [event.replay_id, event.listener_id].filter((id) => id && !names.isKnown(id) && !nameless.has(id));
    const times = events.filter((one) => unnamed(one).length).map((one) => one.log_ms);
    if (!times.length) return;
    const range = { from: at(Math.min(...times) - MADE_MS), to: at(Math.max(...times) + 1) };
    let end = { cursor: null, complete: false };
    while (!end.complete) {
      const asked = { type: "listener.created,replay.started", limit: AT_ONCE, ...range, cursor: end.cursor };
      const { body } = await ask("readLog", { query: asked, signal });
      for (const { event } of body) if (event) names.learn(event);
      end = body[body.length - 1];
    }
    for (const id of events.flatMap(unnamed)) nameless.add(id);
  }

  /** Return the events that are not known yet. The ranges of two requests may overlap. */
  function unknown(events) {
    const position = (one) => `${one.topic} ${one.partition} ${one.offset}`;
    const fresh = events.filter((one) => !known.has(position(one)));
    for (const one of fresh) known.add(position(one));
    return fresh;
  }

  /** Load the events that are newer than all that are known. */
  async function readNewer() {
    if (!follow.checked || filters.to || cursor === null) return;
    const found = await read({ cursor });
    if (!found) return;
    ({ cursor, complete: topComplete } = found);
    waiting = [...unknown(found.events), ...waiting].slice(0, SHOWN_MAX);
    if (window.scrollY <= TOP_PX && !list.querySelector("details[open]")) showFresh();
    else draw();
    if (!topComplete) sooner.dispatchEvent(new Event("look"));
  }

  function showFresh() {
    const there = waiting.length;
    list.prepend(...waiting.map(row));
    waiting = [];
    while (list.children.length > SHOWN_MAX) list.lastChild.remove();
    if (there && window.scrollY > 0) window.scrollTo({ top: 0 });
    draw();
  }

  function draw() {
    const shown = list.children.length;
    fresh.hidden = waiting.length === 0;
    fresh.textContent = `Show ${count(waiting.length, "new event")}`;
    older.hidden = oldestMs <= floorMs || shown >= SHOWN_MAX;
    const since = new Date(floorMs).toLocaleString();
    if (shown >= SHOWN_MAX) status.textContent = `The newest ${count(SHOWN_MAX, "event")} are shown. Choose an earlier end to see older ones.`;
    else if (filters.message || filters.from) status.textContent = `${count(shown, "event")} shown.`;
    else if (oldestMs <= floorMs) status.textContent = `${count(shown, "event")} since ${since}. Choose a start to see older ones.`;
    else status.textContent = `${count(shown, "event")} shown.`;
  }

  const said = (act) => loadMore(act, { older, status, told });

  const row = (one) => eventRow(one, names);
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Log"),
      el("label", { class: "choice" }, follow, "Follow new events"),
    ),
    fields.element,
    told,
    el("div", { class: "over" }, fresh),
    el("div", { class: "panel flush" }, list),
    status,
    older,
  );
  window.addEventListener("scroll", () => window.scrollY <= TOP_PX && waiting.length && showFresh(), { signal, passive: true });
  said(restart);
  poll(signal, FOLLOW_MS, readNewer, told, sooner);
}

function at(ms) {
  return new Date(ms).toISOString();
}

/** Load the names of queues, listeners, keys and members: [a function from an ID to its name, the queues]. */
async function knownNames(signal) {
  const ids = { organization_id: session.organization.id };
  const all = async (operation, member) => {
    const found = [];
    let cursor = null;
    do {
      const { body } = await ask(operation, { ids, query: { limit: 1000, cursor }, signal });
      found.push(...body[member]);
      cursor = nextCursor(body);
    } while (cursor !== null && found.length < 2000);
    return found;
  };
  const [queues, keys, members] = await Promise.all([
    all("listQueues", "queues"),
    whyNot("listKeys") ? [] : all("listKeys", "keys"),
    ask("listMembers", { ids, signal }).then(({ body }) => body.members),
  ]);
  return [namesOf(queues, keys, members), queues];
}

/** Create the fields of the filters: {element, show}. They change the filters, and call changed(). show() shows them. */
function filterFields(filters, queues, changed) {
  const options = (first, pairs) => [["", first], ...pairs].map(([value, text]) => el("option", { value }, text));
  const input = (name, label, tag, attributes, ...children) => {
    const set = () => {
      const moment = attributes.type === "datetime-local";
      filters[name] = moment && made.value ? new Date(made.value).toISOString() : made.value.trim();
      if (name === "queue") filters.listener = "";
      changed();
    };
    const made = el(tag, { ...attributes, onchange: set }, ...children);
    return [made, el("label", { class: "filter" }, el("span", {}, label), made)];
  };
  const [type, typeBox] = input("type", "Kind", "select", {}, options("All kinds", KINDS));
  const [queue, queueBox] = input("queue", "Queue", "select", {}, options("All queues", queues.map((one) => [one.id, one.name])));
  const [listener, listenerBox] = input("listener", "Listener", "select", {});
  const [from, fromBox] = input("from", "From", "input", { type: "datetime-local", step: "1" });
  const [to, toBox] = input("to", "To", "input", { type: "datetime-local", step: "1" });
  const [message, messageBox] = input("message", "Message ID", "input", { "data-search": true, spellcheck: "false" });
  const clear = button("Clear filters", () => {
    for (const name of Object.keys(filters)) filters[name] = "";
    changed();
  });

  function show() {
    const wanted = queues.filter((one) => !filters.queue || one.id === filters.queue);
    const listeners = wanted.flatMap((one) => one.listeners.map(({ id, name }) => [id, filters.queue ? name : `${one.name} › ${name}`]));
    redraw(listener, ...options("All listeners", listeners));
    for (const [box, value] of [[type, filters.type], [queue, filters.queue], [listener, filters.listener]]) {
      // The address may name several kinds, or what was deleted.
      if (![...box.options].some((one) => one.value === value)) box.append(el("option", { value }, value));
      box.value = value;
    }
    for (const [box, value] of [[from, filters.from], [to, filters.to]]) box.value = value ? local(value) : "";
    message.value = filters.message;
    clear.hidden = !Object.values(filters).some(Boolean);
  }

  const actor = filters.actor ? el("p", { class: "quiet" }, `Only events by ${filters.actor}.`) : null;
  const box = el("div", { class: "filterbar" }, typeBox, queueBox, listenerBox, fromBox, toBox, messageBox, clear);
  return { element: el("div", { class: "panel" }, box, actor), show };
}

/** Return a time as a datetime-local input takes it. */
function local(time) {
  const date = new Date(time);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}

function eventRow({ event, topic, partition, offset }, names) {
  const time = Number.isFinite(event.at_ms) ? new Date(event.at_ms) : null;
  const who = names.actor(event.actor);
  const line = el(
    "summary",
    {},
    time ? el("time", { datetime: time.toISOString(), title: time.toISOString() }, clock(time)) : el("span", {}, "–"),
    el("code", { class: `kind ${event.type.split(".")[0]}` }, event.type),
    el("span", { class: "what" }, eventSentence(event, names)),
    who ? el("span", { class: "who" }, who) : null,
  );
  const box = el("details", {}, line);
  const open = () => box.append(el("pre", { tabindex: "0" }, JSON.stringify({ topic, partition, offset, event }, null, 2)));
  box.addEventListener("toggle", open, { once: true });
  return el("li", {}, box);
}

/** Return the time of day; the date, too, of an earlier day. */
function clock(time) {
  const today = time.toDateString() === new Date().toDateString();
  const day = today ? "" : `${time.toLocaleDateString(undefined, { month: "short", day: "numeric" })} `;
  return `${day}${time.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" })}`;
}
