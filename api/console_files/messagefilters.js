// The filters of a queue's messages. They are in the page's address, so that a link shows the same messages.

import { button, el } from "./dom.js";
import { putQuery } from "./lists.js";

const STATES = [
  ["", "All states"],
  ["pending", "pending: waits for its turn"],
  ["scheduled", "scheduled: waits for its time"],
  ["retrying", "retrying: failed, and is sent again"],
  ["parked", "parked: failed, and is not sent again"],
  ["delivered", "delivered"],
];
// By the name in the address: the name of the API's parameter. The listeners of the page use the name `q`.
const PARAMETERS = { search: "q", state: "state", listener: "listener", from: "from", to: "to", name: "name", key: "key" };

/** Create the filters: {element, parameters(), any(), clear()}. changed(): called after each change. */
export function messageFilters(queue, query, changed) {
  const values = Object.fromEntries(Object.keys(PARAMETERS).map((name) => [name, query.get(name) || ""]));
  const inputs = new Map();

  const field = (name, label, tag, attributes, options = []) => {
    const input = el(tag, { ...attributes, onchange: () => set(name, input) }, options.map(([value, text]) => el("option", { value }, text)));
    inputs.set(name, input);
    return el("label", { class: "filter" }, el("span", {}, label), input);
  };
  const listeners = queue.listeners.map((one) => [one.id, one.name]);
  const text = { maxlength: 200, spellcheck: "false", autocomplete: "off" };
  const moment = { type: "datetime-local", step: "1" };
  const first = [
    field("search", "Search", "input", { ...text, type: "search", placeholder: "Name, key or ID" }),
    field("state", "State", "select", {}, STATES),
    field("listener", "Listener", "select", {}, [["", "All listeners"], ...listeners]),
  ];
  const more = [
    field("from", "From", "input", moment),
    field("to", "To", "input", moment),
    field("name", "Name is", "input", { ...text, type: "text" }),
    field("key", "Ordering key is", "input", { ...text, type: "text" }),
  ];
  const clear = button("Clear filters", () => reset());
  const details = el("details", { class: "more" }, el("summary", {}, "More filters"), el("div", { class: "filterbar" }, more));
  const element = el("div", {}, el("div", { class: "filterbar" }, first, clear), details);

  function set(name, input) {
    const given = input.value.trim();
    values[name] = given && input.type === "datetime-local" ? new Date(given).toISOString() : given;
    apply();
  }

  function reset() {
    for (const name of Object.keys(values)) values[name] = "";
    draw();
    apply();
  }

  function apply() {
    putQuery(values);
    clear.hidden = !any();
    changed();
  }

  function draw() {
    for (const [name, input] of inputs) {
      const value = values[name];
      // The address may name a listener that was deleted.
      if (input.tagName === "SELECT" && ![...input.options].some((one) => one.value === value)) input.append(el("option", { value }, value));
      input.value = value && input.type === "datetime-local" ? local(value) : value;
    }
    clear.hidden = !any();
    details.open = details.open || ["from", "to", "name", "key"].some((name) => values[name]);
  }

  const any = () => Object.values(values).some(Boolean);
  draw();
  return {
    element,
    any,
    clear: reset,
    parameters: () => Object.fromEntries(Object.entries(values).map(([name, value]) => [PARAMETERS[name], value])),
  };
}

/** Return a time as a datetime-local input takes it; an empty text for what is no time. */
function local(time) {
  const date = new Date(time);
  if (Number.isNaN(date.getTime())) return "";
  return new Date(date.getTime() - date.getTimezoneOffset() * 60_000).toISOString().slice(0, 19);
}
