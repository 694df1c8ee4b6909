// DOM elements. Text from users becomes text nodes. The console never builds HTML from strings, and the page's policy
// (trusted types: none) would refuse it.
//
// For: creating elements, tables, notices, dialogs. Not for: forms (forms.js), the content of a page (the views).

import { session, whyNot } from "./api.js";
import { ago, duration, problemWords } from "./words.js";

/** Create an element. properties: its attributes; `on…` adds an event listener; true sets an attribute without a value. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Create a link within the console. parts: the path's parts; each may be any string. */
export function link(parts, text, properties = {}) {
  return el("a", { href: hash(...parts), ...properties }, text);
}

// The first parts of the addresses that are of no organization.
const OF_NOBODY = ["invitation", "organizations", "password", "reset"];

/** Return the address of a page, with the id of the chosen organization if it is of an organization. */
export function hash(...parts) {
  const of = session.organization && !OF_NOBODY.includes(parts[0]) ? ["o", session.organization.id] : [];
  return `#/${[...of, ...parts].map(encodeURIComponent).join("/")}`;
}

/** Create a button. needs: the operation that it uses; without the role for it, the button only says why not. */
export function button(text, onclick, { needs, ...properties } = {}) {
  const reason = needs ? whyNot(needs) : "";
  const refused = reason ? { "aria-disabled": "true", title: reason } : {};
  return el("button", { type: "button", onclick: reason ? () => notice(reason) : onclick, ...properties, ...refused }, text);
}

/** Create a colored badge with a state's name. */
export function state(word) {
  return el("span", { class: `state ${/^[a-z]+$/.test(word) ? word : "unknown"}` }, word);
}

/** Show a time as its age, kept up to date; the time itself is shown on hover. */
export function age(time) {
  if (!time) return document.createTextNode("–");
  const title = `${new Date(time).toLocaleString()} (${time})`;
  return el("time", { datetime: time, title, "data-age": "ago" }, ago(time, Date.now()));
}

/** Show the duration since a time, kept up to date. */
export function since(time) {
  if (!time) return document.createTextNode("–");
  const title = `since ${new Date(time).toLocaleString()}`;
  return el("time", { datetime: time, title, "data-age": "since" }, elapsed(time));
}

function elapsed(time) {
  return duration(Math.floor(Math.max(0, Date.now() - Date.parse(time)) / 1000));
}

/** Update all ages on the page. */
export function growOlder() {
  for (const element of document.querySelectorAll("time[data-age]")) {
    const time = element.dateTime;
    const text = element.dataset.age === "ago" ? ago(time, Date.now()) : elapsed(time);
    if (element.textContent !== text) element.textContent = text;
  }
}

const FOCUSABLE = "a, button, input, select, textarea, summary, [tabindex]";

/**
 * Give an element these child nodes. Equal nodes are kept, with the focus and the selection in them.
 * Two buttons with the same text that act on different things need an attribute that differs.
 */
export function redraw(element, ...nodes) {
  const focused = [...element.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  const wanted = nodes.flat().filter((one) => one !== null && one !== undefined && one !== false);
  become(
    element,
    wanted.map((one) => (typeof one === "string" ? document.createTextNode(one) : one)),
  );
  if (focused >= 0 && !element.contains(document.activeElement)) {
    const now = element.querySelectorAll(FOCUSABLE)[focused];
    if (now) now.focus({ preventScroll: true });
  }
}

function become(element, wanted) {
  while (element.childNodes.length > wanted.length) element.lastChild.remove();
  wanted.forEach((fresh, index) => {
    const known = element.childNodes[index];
    if (!known) element.append(fresh);
    else if (!known.isEqualNode(fresh)) {
      if (isSameOutside(known, fresh)) become(known, [...fresh.childNodes]);
      else known.replaceWith(fresh);
    }
  });
}

function isSameOutside(known, fresh) {
  const elements = known.nodeType === Node.ELEMENT_NODE && fresh.nodeType === Node.ELEMENT_NODE;
  return elements && !known.matches(FOCUSABLE) && known.cloneNode(false).isEqualNode(fresh.cloneNode(false));
}

export function moment(time) {
  if (!time) return document.createTextNode("–");
  return el(
    "time",
    { datetime: time, title: time },
    new Date(time).toLocaleString(undefined, { dateStyle: "short", timeStyle: "medium" }),
  );
}

/** Create a table; on a phone each row is a card. columns: names. rows: arrays of nodes or strings. empty: text if none. */
export function table(caption, columns, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  const body = el(
    "tbody",
    {},
    rows.map((cells) =>
      el(
        "tr",
        {},
        cells.map((cell, index) => el("td", { "data-label": columns[index] }, cell)),
      ),
    ),
  );
  return tableOf(caption, columns, body);
}

/** Create a table around a body. columns: names or nodes; an empty name is that of the buttons. */
export function tableOf(caption, columns, body, properties = {}) {
  const heads = columns.map((name) => el("th", { scope: "col" }, name || el("span", { class: "unseen" }, "Actions")));
  return el(
    "table",
    properties,
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, heads)),
    body,
  );
}

/** Create a list of names and values. rows: [name, node or string]; null is skipped. */
export function facts(rows) {
  return el(
    "dl",
    { class: "facts" },
    rows.filter(Boolean).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))),
  );
}

export function panel(title, ...children) {
  return el("section", { class: "panel" }, el("h2", {}, title), ...children);
}

/** Show a notice for 6 seconds. alert: it reports an error, and stays until it is closed. */
export function notice(text, { alert = false } = {}) {
  const box = el("div", { class: alert ? "notice alert" : "notice" }, el("span", {}, text));
  box.append(button("×", () => box.remove(), { class: "plain", "aria-label": "Close" }));
  document.getElementById("notices").append(box);
  if (!alert) setTimeout(() => box.remove(), 6000);
}

/** Do something, and show its error as a notice. A request that the page has given up is no error. */
export async function noticed(act) {
  try {
    await act();
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

/** Load more of a list, and show an error in `told`. older: the button that loads more. status: what the list says of itself. */
export async function loadMore(act, { older, status, told }) {
  older.disabled = true;
  try {
    await act();
    told.hidden = true;
  } catch (error) {
    if (error.name === "AbortError") return;
    status.textContent = "";
    told.textContent = problemWords(error);
    told.hidden = false;
  }
  older.disabled = false;
}

/** Open a dialog. content: called with a function that closes the dialog. Resolves when the dialog is closed. */
export function dialog(title, content) {
  const heading = el("h2", { id: `dialog-${Math.random().toString(36).slice(2)}` }, title);
  const box = el("dialog", { "aria-labelledby": heading.id }, heading);
  const closed = new Promise((resolve) => {
    box.addEventListener("close", () => {
      box.remove();
      resolve(box.returnValue);
    });
  });
  box.append(content((value = "") => box.close(value)));
  document.body.append(box);
  box.showModal();
  return closed;
}

/** Ask for confirmation; resolves to true if it is given. */
export async function confirmed(question, { explain = "", yes, danger = true } = {}) {
  const answer = await dialog(question, (close) =>
    el(
      "div",
      {},
      explain ? el("p", {}, explain) : null,
      el(
        "div",
        { class: "row" },
        button(yes, () => close("yes"), { class: danger ? "danger" : "primary" }),
        button("Cancel", () => close(), { autofocus: true }),
      ),
    ),
  );
  return answer === "yes";
}

/** Show a text with a button that copies it, such as a secret. */
export function copyable(text, label) {
  const field = el("input", {
    class: "code",
    readonly: true,
    value: text,
    "aria-label": label,
    size: Math.min(64, text.length),
    onfocus: () => field.select(),
  });
  return el("div", { class: "copyable" }, field, copyButton(text, label, () => field.select()));
}

/** Show a text of several lines, such as a sample, with a button that copies it. */
export function codeBlock(text, label) {
  const block = el("pre", { tabindex: "0", role: "group", "aria-label": label }, el("code", {}, text));
  return el("div", { class: "code-block" }, copyButton(text, label, () => getSelection().selectAllChildren(block)), block);
}

function copyButton(text, label, select) {
  const copy = button(
    "Copy",
    async () => {
      select();
      try {
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
      } catch {
        copy.textContent = "Press Ctrl+C"; // over plain http from another machine, browsers offer no clipboard
      }
    },
    { "aria-label": `Copy: ${label}`, class: "copy" },
  );
  copy.addEventListener("click", () => copy.removeAttribute("aria-label"));
  return copy;
}

let tabLists = 0;

/**
 * Create tabs. parts: [label, node] each. Arrow keys move between the tabs.
 * together: a list that several of them share. A tab that is chosen in one is chosen in all that have a tab with its label.
 */
export function tabs(label, parts, together = []) {
  const id = `tabs-${(tabLists += 1)}`;
  const show = (name) => {
    const number = parts.findIndex(([own]) => own === name);
    if (number < 0) return;
    heads.forEach((head, index) => {
      head.setAttribute("aria-selected", String(index === number));
      head.tabIndex = index === number ? 0 : -1;
      panels[index].hidden = index !== number;
    });
  };
  const choose = (number) => {
    for (const one of together) one(parts[number][0]);
  };
  const heads = parts.map(([name], index) =>
    button(name, () => choose(index), { role: "tab", id: `${id}-${index}`, "aria-controls": `${id}-${index}-panel` }),
  );
  const panels = parts.map(([, node], index) =>
    el("div", { role: "tabpanel", id: `${id}-${index}-panel`, "aria-labelledby": `${id}-${index}` }, node),
  );
  const list = el("div", { role: "tablist", class: "tabs", "aria-label": label }, heads);
  list.addEventListener("keydown", (event) => {
    const now = heads.indexOf(document.activeElement);
    const last = heads.length - 1;
    const to = { ArrowRight: now === last ? 0 : now + 1, ArrowLeft: now === 0 ? last : now - 1, Home: 0, End: last }[event.key];
    if (to === undefined || now < 0) return;
    event.preventDefault();
    choose(to);
    heads[to].focus();
  });
  together.push(show);
  show(parts[0][0]);
  return el("div", {}, list, panels);
}
