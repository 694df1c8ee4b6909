// The organization's API keys: made, shown once, revoked.

import { ask, nextCursor, session } from "./api.js";
import { age, button, confirmed, copyable, dialog, el, notice, table } from "./dom.js";
import { form } from "./forms.js";
import { problemWords } from "./words.js";

const SCOPES = [
  ["queues", "queues: make, see and change queues and listeners"],
  ["messages", "messages: put and see messages"],
  ["messages:put", "messages:put: only put messages"],
  ["keys", "keys: make and revoke keys"],
  ["audit", "audit: read the log"],
];

export async function showKeys({ main, signal }) {
  const ids = { organization_id: session.organization.id };
  const list = el("div", { class: "panel flush" });

  async function look() {
    const keys = [];
    let cursor = null;
    do {
      const { body } = await ask("listKeys", { ids, query: { limit: 1000, cursor }, signal });
      keys.push(...body.keys);
      cursor = nextCursor(body);
    } while (cursor !== null);
    const rows = keys.map((key) => [
      key.name,
      el("code", {}, `${key.prefix}…`),
      (key.scopes.join(", ") || "none") + (key.queues ? ` (${key.queues.length} queues only)` : ""),
      age(key.created_at),
      key.last_used_at ? age(key.last_used_at) : "never",
      key.expires_at ? key.expires_at.slice(0, 16).replace("T", " ") : "never",
      button("Revoke", () => revoke(ids, key, look), { class: "danger" }),
    ]);
    list.replaceChildren(
      table(
        "API keys",
        ["Name", "Begins with", "Scopes", "Made", "Last used", "Expires (UTC)", ""],
        rows,
        "There is no key. Programs need one to put messages.",
      ),
    );
  }

  await look();
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "API keys"),
      button("New key", () => make(ids, look), { class: "primary" }),
    ),
    el(
      "p",
      { class: "quiet" },
      "Programs send one in the header X-API-KEY. When it was used last is up to an hour behind.",
    ),
    list,
  );
}

function make(ids, then) {
  dialog("A new key", (close) =>
    form({
      fields: [
        { name: "name", label: "Name", required: true, maxlength: 200, hint: "What, or who, will use it." },
        { name: "scopes", label: "It may do", type: "choices", options: SCOPES, value: ["queues", "messages"] },
      ],
      submit: "Make it",
      cancel: () => close(),
      onSubmit: async (body) => {
        const { key } = (await ask("createKey", { ids, body })).body;
        close();
        await showKey(key);
        await then();
      },
    }),
  );
}

function showKey(key) {
  return dialog(`The key “${key.name}”`, (close) =>
    el(
      "div",
      {},
      el(
        "p",
        {},
        el("strong", {}, "It is shown this once."),
        " Copy it to where it is needed; nobody can look it up later.",
      ),
      copyable(key.secret, "API key"),
      el(
        "div",
        { class: "row" },
        button("I have it", () => close(), { class: "primary" }),
      ),
    ),
  );
}

async function revoke(ids, key, then) {
  const sure = await confirmed(`Revoke “${key.name}”?`, {
    explain: `Whatever uses ${key.prefix}… is refused from the next second on. This can't be undone.`,
    yes: "Revoke the key",
  });
  if (!sure) return;
  try {
    await ask("revokeKey", { ids: { ...ids, key_id: key.id } });
    notice(`The key “${key.name}” is revoked.`);
    await then();
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}
