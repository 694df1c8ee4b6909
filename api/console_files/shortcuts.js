// The keyboard: a palette that goes to any page, queue, listener or message, and keys for the search and for help.

import { ask, session } from "./api.js";
import { button, dialog, el, hash, table } from "./dom.js";
import { problemWords } from "./words.js";

const KEYS = [
  ["/", "Go to the search field of the page"],
  ["Ctrl K", "Open the palette: go to a page, queue, listener or message"],
  ["?", "Show these keys"],
  ["Esc", "Close a dialog"],
];
const SHOWN_MAX = 12;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;
const PAGES = [
  ["Overview", ["overview"]],
  ["Queues", ["queues"]],
  ["Log", ["log"]],
  ["API keys", ["keys"]],
  ["Members", ["members"]],
  ["Get started", ["start"]],
  ["Change password", ["password"]],
];

/** Listen to the keys of the whole page. */
export function listenToKeys() {
  window.addEventListener("keydown", (event) => {
    if (!session.organization || document.querySelector("dialog[open]")) return;
    if ((event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k") {
      event.preventDefault();
      openPalette();
      return;
    }
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") {
      event.preventDefault();
      const field = [...document.querySelectorAll("main [data-search]")].find((one) => one.checkVisibility());
      if (field) field.select();
      if (field) field.focus();
      else openPalette();
    } else if (event.key === "?") {
      event.preventDefault();
      showKeys();
    }
  });
}

function showKeys() {
  dialog("Keyboard shortcuts", (close) =>
    el(
      "div",
      {},
      table("Keys", ["Key", "What it does"], KEYS.map(([key, words]) => [el("kbd", {}, key), words]), ""),
      el("div", { class: "row" }, button("Close", () => close(), { class: "primary", autofocus: true })),
    ),
  );
}

/** Open the palette. Enter goes to the chosen entry. */
export function openPalette() {
  let entries = PAGES.map(([text, parts]) => ({ text, kind: "page", open: () => go(parts) }));
  let shown = [];
  let chosen = 0;
  let close = () => {};
  const told = el("p", { class: "alert", role: "alert", hidden: true });
  const options = el("ul", { id: "palette-options", role: "listbox", "aria-label": "Places", class: "options" });
  const field = el("input", {
    type: "search",
    role: "combobox",
    autofocus: true,
    autocomplete: "off",
    spellcheck: "false",
    "aria-expanded": "true",
    "aria-controls": options.id,
    "aria-label": "Page, queue, listener or message ID",
    placeholder: "Page, queue, listener or message ID",
    oninput: () => draw(0),
    onkeydown: (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        draw(chosen + (event.key === "ArrowDown" ? 1 : -1));
      } else if (event.key === "Enter") {
        event.preventDefault();
        if (shown[chosen]) shown[chosen].open();
      }
    },
  });

  function go(parts) {
    close();
    location.hash = hash(...parts);
  }

  async function goToMessage(id) {
    try {
      const { body } = await ask("readLog", { query: { message: id, type: "message.put", limit: 1 } });
      const put = body.find((one) => one.event);
      if (put) go(["queues", put.event.queue_id, "messages", id]);
    } catch (error) {
      told.textContent = problemWords(error);
      told.hidden = false;
    }
  }

  function draw(wanted) {
    const text = field.value.trim();
    const words = text.toLowerCase().split(/\s+/);
    shown = entries.filter((one) => words.every((word) => one.text.toLowerCase().includes(word))).slice(0, SHOWN_MAX);
    if (UUID.test(text)) {
      const byId = entries.filter((one) => one.id === text.toLowerCase());
      shown = byId.length ? byId : [{ text: `Message ${text}`, kind: "message", open: () => goToMessage(text.toLowerCase()) }];
    }
    chosen = shown.length ? (wanted + shown.length) % shown.length : 0;
    told.hidden = true;
    options.replaceChildren(
      ...shown.map((one, index) =>
        el(
          "li",
          { role: "option", id: `palette-${index}`, "aria-selected": String(index === chosen), onclick: () => one.open() },
          el("span", {}, one.text),
          el("span", { class: "quiet" }, one.kind),
        ),
      ),
    );
    options.hidden = shown.length === 0;
    if (shown.length) field.setAttribute("aria-activedescendant", `palette-${chosen}`);
    else field.removeAttribute("aria-activedescendant");
    if (shown.length) options.children[chosen].scrollIntoView({ block: "nearest" });
  }

  dialog("Go to", (closed) => {
    close = closed;
    return el("div", { class: "palette" }, field, told, options);
  });
  draw(0);
  ask("listQueues", { query: { limit: 1000 } })
    .then(({ body }) => {
      for (const queue of body.queues) {
        entries.push({ text: queue.name, kind: "queue", id: queue.id, open: () => go(["queues", queue.id]) });
        for (const one of queue.listeners) {
          const open = () => go(["queues", queue.id, "listeners", one.id]);
          entries.push({ text: `${queue.name} › ${one.name}`, kind: "listener", id: one.id, open });
        }
      }
      draw(chosen);
    })
    .catch((error) => {
      told.textContent = problemWords(error);
      told.hidden = false;
    });
}
