// The page of the organization's API keys: create, show once, revoke.

import { ask, nextCursor, session, whyNot } from "./api.js";
import { age, button, confirmed, copyable, dialog, el, notice, noticed, table } from "./dom.js";
import { form } from "./forms.js";
import { allQueues } from "./queues.js";
import { count } from "./words.js";

const SCOPES = [
  ["queues", "queues: create, read, change and delete queues and listeners"],
  ["queues:read", "queues:read: read queues and listeners"],
  ["queues:operate", "queues:operate: pause, test, redrive and replay to listeners"],
  ["messages", "messages: put, read, change and delete messages"],
  ["messages:read", "messages:read: read messages"],
  ["messages:put", "messages:put: put messages, nothing else"],
  ["keys", "keys: create and revoke API keys"],
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
      (key.scopes.join(", ") || "none") + (key.queues ? ` (${count(key.queues.length, "queue")} only)` : ""),
      age(key.created_at),
      key.last_used_at ? age(key.last_used_at) : "never",
      key.expires_at ? key.expires_at.slice(0, 16).replace("T", " ") : "never",
      button("Revoke", () => revoke(ids, key, look), { class: "danger" }),
    ]);
    list.replaceChildren(
      table(
        "API keys",
        ["Name", "Starts with", "Scopes", "Created", "Last used", "Expires (UTC)", ""],
        rows,
        "No API keys yet. A program needs one to put messages.",
      ),
    );
  }

  await look();
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "API keys"),
      button("Create API key", () => create(ids, look, signal), { class: "primary" }),
    ),
    el(
      "p",
      { class: "quiet" },
      "Programs send a key in the header X-API-KEY. “Last used” is up to 1.5 hours behind.",
    ),
    list,
  );
}

async function create(ids, then, signal) {
  await noticed(async () => {
    const { queues } = whyNot("listQueues") ? { queues: [] } : await allQueues({}, signal);
    if (document.querySelector("dialog")) return; // a second click
    dialog("Create API key", (close) => keyForm({ ids, queues, close, then }));
  });
}

function keyForm({ ids, queues, close, then }) {
  const restriction = {
    name: "queues",
    label: "Only for these queues",
    type: "choices",
    options: queues.map((one) => [one.id, one.name]),
    hint: "Choose none for a key for all queues.",
  };
  return form({
    fields: [
      { name: "name", label: "Name", required: true, maxlength: 200, hint: "Name the program or person that will use the key." },
      { name: "scopes", label: "Scopes", type: "choices", options: SCOPES, value: ["queues", "messages"] },
      ...(queues.length ? [restriction] : []),
      { name: "expires_at", label: "Expires", type: "moment", hint: "In your time zone. Leave empty for a key that does not expire." },
    ],
    submit: "Create API key",
    cancel: () => close(),
    onSubmit: async ({ queues: chosen = [], expires_at: expires, ...body }) => {
      if (chosen.length) body.queues = chosen;
      if (expires) body.expires_at = expires;
      const { key } = (await ask("createKey", { ids, body })).body;
      close();
      await showKey(key);
      await then();
    },
  });
}

function showKey(key) {
  return dialog(`API key “${key.name}”`, (close) =>
    el(
      "div",
      {},
      el(
        "p",
        {},
        el("strong", {}, "This key is shown only once."),
        " Copy it now and store it safely. It can't be looked up later.",
      ),
      copyable(key.secret, "API key"),
      el(
        "div",
        { class: "row" },
        button("I have copied it", () => close(), { class: "primary" }),
      ),
    ),
  );
}

async function revoke(ids, key, then) {
  const sure = await confirmed(`Revoke API key “${key.name}”?`, {
    explain: `Requests with ${key.prefix}… are refused within a second. This can't be undone.`,
    yes: "Revoke API key",
  });
  if (!sure) return;
  await noticed(async () => {
    await ask("revokeKey", { ids: { ...ids, key_id: key.id } });
    notice(`API key “${key.name}” revoked.`);
    await then();
  });
}
