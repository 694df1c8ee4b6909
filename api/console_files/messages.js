// A queue's messages, newest first, with the states of their deliveries, kept up to date.
//
// For: the rows, and when new ones are shown: not while the reader is further down or has the focus on a row. Not for: the
// filters (messagefilters.js), the page of one message (message.js).

import { ask, nextCursor } from "./api.js";
import { copyText, curlText } from "./curl.js";
import { age, button, codeBlock, el, link, loadMore, noticed, panel, redraw, tableOf } from "./dom.js";
import { concerns, poll } from "./live.js";
import { messageFilters } from "./messagefilters.js";
import { putForm } from "./putmessage.js";
import { bytes, count, deliveryCounts } from "./words.js";

const PAGE = 25;
const LIVE_MAX = 100; // rows whose states are kept up to date
const SHOWN_MAX = 1000;
const REQUESTS_MAX = 20; // for one page: where few messages match, a page may be empty while there is a next one
const LOOK_MS = 3000;
const COLUMNS = ["Message", "Put", "Ordering key", "Size", "Deliveries", ""];
const SAMPLE = { data: '{"hello":"world"}' };

/** Create the section with the newest messages. query: of the page's address. */
export function messagesPanel(queue, query, signal) {
  const rows = new Map(); // by message ID: {element, draw}
  const body = el("tbody");
  const table = tableOf("Messages, newest first", COLUMNS, body, { hidden: true });
  const told = el("p", { class: "alert", role: "alert", hidden: true });
  const status = el("p", { class: "quiet", role: "status" }, "Loading…");
  const empty = el("div");
  const fresh = button("", () => showWaiting(), { class: "primary fresh", hidden: true });
  const older = button("Show older", () => said(readOlder), { hidden: true });
  const live = el("input", { type: "checkbox", checked: true, onchange: () => live.checked && said(look) });
  const filters = messageFilters(queue, query, () => said(restart));
  let shown = [];
  let waiting = null; // the newest messages, which the reader has not asked to see: {messages, complete}
  let cursor = null;
  let reading = 0;
  let loaded = false;

  /** Load messages: {messages, next}; null if the filters have changed meanwhile. */
  async function read(from, limit) {
    const mine = reading;
    const messages = [];
    let next = from;
    for (let request = 0; request < REQUESTS_MAX && messages.length === 0; request += 1) {
      const asked = { ...filters.parameters(), deliveries: true, data: false, limit, cursor: next };
      const { body: answer } = await ask("listMessages", { ids: { queue_id: queue.id }, query: asked, signal });
      if (mine !== reading) return null;
      messages.push(...answer.messages);
      next = nextCursor(answer);
      if (next === null) break;
      if (from === null && loaded) break;
    }
    return { messages, next };
  }

  async function restart() {
    reading += 1;
    loaded = false;
    waiting = null;
    shown = [];
    cursor = null;
    draw();
    status.textContent = filters.any() ? "Searching…" : "Loading…";
    empty.replaceChildren();
    const found = await read(null, PAGE);
    if (!found) return;
    shown = found.messages;
    cursor = found.next;
    loaded = true;
    draw();
  }

  async function readOlder() {
    const found = await read(cursor, PAGE);
    if (!found) return;
    const known = new Set(shown.map((one) => one.id));
    shown.push(...found.messages.filter((one) => !known.has(one.id)));
    cursor = found.next;
    draw();
  }

  /** Load the newest messages again. New ones are shown unless that would take the reader's place away. */
  async function look() {
    if (!loaded || !live.checked) return;
    const found = await read(null, Math.max(PAGE, Math.min(shown.length, LIVE_MAX)));
    if (!found || !live.checked) return;
    const now = new Map(found.messages.map((one) => [one.id, one]));
    waiting = { messages: found.messages, complete: found.next === null };
    if (isReading()) {
      shown = shown.map((one) => now.get(one.id) || one);
      draw();
    } else showWaiting();
  }

  function showWaiting() {
    if (waiting === null) return;
    const { messages, complete } = waiting;
    waiting = null;
    const known = new Set(messages.map((one) => one.id));
    const last = messages.length ? Date.parse(messages[messages.length - 1].created_at) : Infinity;
    // What is not in the answer though it is not older no longer matches the filters.
    const rest = complete ? [] : shown.filter((one) => !known.has(one.id) && (messages.length === 0 || Date.parse(one.created_at) <= last));
    shown = [...messages, ...rest].slice(0, SHOWN_MAX);
    draw();
  }

  function isReading() {
    return table.getBoundingClientRect().top < 0 || body.contains(document.activeElement);
  }

  function draw() {
    const wanted = new Set(shown.map((one) => one.id));
    for (const [id, row] of rows) {
      if (wanted.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    shown.forEach((message, index) => {
      if (!rows.has(message.id)) rows.set(message.id, messageRow(queue, message));
      const row = rows.get(message.id);
      row.draw(message);
      if (body.children[index] !== row.element) body.insertBefore(row.element, body.children[index] || null);
    });
    const news = waiting === null ? 0 : waiting.messages.filter((one) => !wanted.has(one.id)).length;
    fresh.hidden = news === 0;
    fresh.textContent = `Show ${count(news, "new message")}`;
    table.hidden = shown.length === 0;
    older.hidden = cursor === null || shown.length >= SHOWN_MAX;
    older.textContent = shown.length ? "Show older" : "Search further back";
    if (!loaded) return;
    status.textContent = shown.length ? `${count(shown.length, "message")} shown${cursor === null ? "." : ", the newest of this search."}` : "";
    redraw(empty, shown.length ? [] : nothing());
  }

  function nothing() {
    if (!filters.any() && cursor === null) {
      return [
        el("p", {}, "No messages yet. Put one with the form above, or with an API key:"),
        codeBlock(curlText(queue.id, SAMPLE), "Put a message with curl"),
      ];
    }
    const words = cursor === null ? "No message matches these filters." : "No message matches so far. The log goes further back.";
    return [el("p", {}, words), filters.any() ? button("Clear filters", () => filters.clear()) : null];
  }

  const said = (act) => loadMore(act, { older, status, told });

  window.addEventListener("scroll", () => waiting !== null && !isReading() && showWaiting(), { signal, passive: true });
  said(restart);
  poll(signal, LOOK_MS, look, told, null, concerns({ queue_id: queue.id }, "message", "delivery", "listener", "replay"));
  const head = el("div", { class: "row" }, el("label", { class: "choice" }, live, "Live: show new messages and states"));
  const element = el(
    "section",
    { class: "messages", id: "messages" },
    panel("Messages", putForm(queue, () => said(restart)), filters.element, head, told),
    el("div", { class: "over" }, fresh),
    el("div", { class: "panel flush" }, empty, table),
    el("div", { class: "row" }, older, status),
  );
  // A link with filters leads to the messages, below the listeners.
  if (filters.any()) setTimeout(() => element.scrollIntoView(), 0);
  return element;
}

function messageRow(queue, first) {
  const cells = COLUMNS.map((name) => el("td", { "data-label": name }));
  const [message, put, key, size, deliveries, actions] = cells;
  message.append(link(["queues", queue.id, "messages", first.id], first.name, { class: "name", title: `ID ${first.id}` }));
  put.append(age(first.created_at));
  key.append(first.key === null ? "–" : el("code", {}, first.key));
  actions.append(button("Copy as curl", () => copyCurl(queue, first), { "aria-label": `Copy as curl: ${first.name}`, class: "plain" }));
  function draw(now) {
    size.textContent = bytes(now.size);
    redraw(deliveries, badges(now));
  }
  return { element: el("tr", {}, cells), draw };
}

/** Create the badges of a message's deliveries: one for each state, with the names of its listeners. */
function badges(message) {
  const found = deliveryCounts(message.listeners || []).map(({ state, text, names }) =>
    el("span", { class: `state ${state}`, title: names }, text),
  );
  return found.length ? el("span", { class: "badges" }, found) : el("span", { class: "quiet" }, "no listener");
}

async function copyCurl(queue, { id }) {
  await noticed(async () => {
    const { body } = await ask("getMessage", { ids: { queue_id: queue.id, message_id: id } });
    await copyText(curlText(queue.id, body.message), "Command");
  });
}
