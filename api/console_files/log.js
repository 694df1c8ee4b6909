// The page of the log: each event with its time, actor and fields.

import { ask } from "./api.js";
import { button, el, hash, moment, tableOf } from "./dom.js";
import { form } from "./forms.js";
import { poll } from "./live.js";
import { count, eventWords, problemWords, shortened } from "./words.js";

const AT_ONCE = 200;
const SHOWN_MAX = 2000;
const FOLLOW_MS = 3000;
const BACK_MS = 15 * 60_000;
const NAMES = ["type", "queue", "listener", "message", "actor"];
const TYPES = [
  "queue",
  "listener",
  "key",
  "message",
  "message.put",
  "delivery",
  "delivery.attempted",
  "deliveries.settled",
  "replay",
  "organization",
];

export async function showLog({ main, query, signal }) {
  const list = el("tbody");
  const told = el("p", { class: "alert", hidden: true });
  const status = el("p", { class: "quiet", role: "status" });
  const more = button("Show more", () => read(), { hidden: true });
  const follow = el("input", { type: "checkbox" });
  const types = el(
    "datalist",
    { id: "types" },
    TYPES.map((one) => el("option", { value: one })),
  );
  let filters = {};
  let cursor = null;

  const filtersForm = form({
    fields: [
      {
        name: "from",
        label: "From",
        type: "moment",
        hint: "Leave empty for the last 15 minutes; with a message ID, for all of its events.",
      },
      { name: "to", label: "To", type: "moment" },
      {
        name: "type",
        label: "Event types",
        list: "types",
        value: query.get("type") || "",
        hint: "Separate with commas, for example: queue, message.put",
      },
      { name: "queue", label: "Queue ID", advanced: true, value: query.get("queue") || "" },
      { name: "listener", label: "Listener ID", advanced: true, value: query.get("listener") || "" },
      { name: "message", label: "Message ID", advanced: true, value: query.get("message") || "" },
      {
        name: "actor",
        label: "Actor",
        advanced: true,
        value: query.get("actor") || "",
        hint: "key:…, account:… or worker",
      },
    ],
    submit: "Show events",
    more: "More filters",
    moreOpen: query.size > 0,
    onSubmit: (given) => show(given),
  });
  filtersForm.classList.add("filters");

  async function show(given) {
    filters = Object.fromEntries(Object.entries(given).filter(([, value]) => value));
    if (!filters.from && !filters.message) filters.from = new Date(Date.now() - BACK_MS).toISOString();
    cursor = null;
    list.replaceChildren();
    const named = new URLSearchParams(NAMES.filter((name) => filters[name]).map((name) => [name, filters[name]]));
    history.replaceState(null, "", `${hash("log")}${named.size ? `?${named}` : ""}`);
    await next();
  }

  /** Load the next events; resolves to whether there are more. */
  async function next() {
    const asked = { ...filters, limit: AT_ONCE, ...(cursor === null ? {} : { cursor }) };
    const { body } = await ask("readLog", { query: asked, signal });
    let complete = true;
    for (const one of body) {
      if (one.event) list.append(eventRow(one));
      if (one.cursor) ({ cursor, complete } = one);
    }
    while (list.children.length > SHOWN_MAX) list.firstChild.remove();
    more.hidden = complete;
    status.textContent = `${count(list.children.length, "event")}, oldest first${complete ? "" : ". Choose “Show more” for later ones"}.`;
    return !complete;
  }

  async function read() {
    more.disabled = true;
    try {
      await next();
      told.hidden = true;
    } catch (error) {
      if (error.name === "AbortError") return;
      told.textContent = problemWords(error);
      told.hidden = false;
    }
    more.disabled = false;
  }

  const given = Object.fromEntries(NAMES.map((name) => [name, query.get(name) || ""]));
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Log"),
      el("label", { class: "choice" }, follow, "Follow new events"),
    ),
    el("div", { class: "panel" }, filtersForm, types),
    told,
    el("div", { class: "panel flush" }, tableOf("Events", ["Time", "Type", "Actor", "Fields"], list, { class: "log" })),
    status,
    more,
  );
  try {
    await show(given);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    told.textContent = problemWords(error);
    told.hidden = false;
  }
  poll(
    signal,
    FOLLOW_MS,
    async () => {
      if (!follow.checked || cursor === null) return;
      await next();
    },
    told,
  );
}

function eventRow({ event, topic, partition, offset }) {
  const time = Number.isFinite(event.at_ms) ? moment(new Date(event.at_ms).toISOString()) : "–";
  const whole = JSON.stringify({ topic, partition, offset, event }, null, 2);
  const box = el("details", {}, el("summary", {}, eventWords(event) || "no fields"));
  box.addEventListener("toggle", () => box.append(el("pre", {}, whole)), { once: true });
  return el(
    "tr",
    {},
    el("td", { "data-label": "Time" }, time),
    el("td", { "data-label": "Type" }, el("code", {}, event.type)),
    el("td", { "data-label": "Actor", class: "who", title: event.actor }, shortened(event.actor, 16)),
    el("td", { "data-label": "Fields" }, box),
  );
}
