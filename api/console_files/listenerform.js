// Making a listener, and changing one.

import { ask } from "./api.js";
import { button, copyable, dialog, el, hash } from "./dom.js";
import { form } from "./forms.js";
import { headersOf, headersText } from "./words.js";

// name, label, hint, whether empty means "no limit"
const NUMBERS = [
  ["max_in_flight", "Requests at once", "How many it may be sent at the same time.", false],
  ["rate_per_s", "Deliveries a second", "At most; empty for no limit.", true],
  ["timeout_ms", "Time for an answer, ms", "After that an attempt has failed.", false],
  ["max_attempts", "Attempts", "Then the delivery is parked; empty for no limit but time.", true],
  ["max_age_s", "Time to try, s", "From the first attempt; then the delivery is parked.", false],
  ["retry_first_ms", "First wait, ms", "After the first failure; it doubles with each.", false],
  ["retry_max_s", "Longest wait, s", "After any failure.", false],
];

/** Open the form: for a new listener of a queue or, with listener and etag, for that one. */
export function listenerForm({ queue, listener = null, etag = null }) {
  const fresh = listener === null;
  const was = listener || {};
  const fields = [
    { name: "name", label: "Name", required: true, maxlength: 200, value: was.name },
    {
      name: "notify_url",
      label: "notify_url",
      type: "text",
      inputmode: "url",
      required: true,
      value: was.notify_url,
      hint: "Each message is POSTed here. 2xx means it was taken.",
    },
    {
      name: "liveness_url",
      label: "liveness_url",
      type: "text",
      inputmode: "url",
      required: true,
      value: was.liveness_url,
      hint: "Asked while deliveries fail: 2xx means it is up again.",
    },
    ...(fresh
      ? [beginning(), { name: "secret", label: "Signing secret", advanced: true, hint: "whsec_…; empty: one is made." }]
      : []),
    ...NUMBERS.map(([name, label, hint]) => ({
      name,
      label,
      hint,
      advanced: true,
      type: "number",
      min: 0,
      step: "any",
      value: was[name] ?? "",
    })),
    {
      name: "headers",
      label: "Headers",
      type: "textarea",
      advanced: true,
      value: headersText(was.headers),
      hint: "One “Name: value” on each line, added to each request. Values are never shown again: … keeps one. A notify_url of another scheme, host or port needs the values again.",
    },
  ];
  return dialog(fresh ? "A new listener" : "Change the listener", (close) =>
    form({
      fields,
      submit: fresh ? "Make it" : "Save",
      cancel: () => close(),
      onSubmit: async (given) => {
        const body = fresh ? created(given) : changed(given, was);
        if (!fresh) {
          if (Object.keys(body).length)
            await ask("updateListener", { ids: { queue_id: queue.id, listener_id: was.id }, body, ifMatch: etag });
          close("saved");
          window.dispatchEvent(new Event("hashchange"));
          return;
        }
        const made = (await ask("createListener", { ids: { queue_id: queue.id }, body })).body.listener;
        close();
        await showSecret(made.secret, `The listener “${made.name}” is there`);
        location.hash = hash("queues", queue.id, "listeners", made.id);
      },
    }),
  );
}

/** Show a signing secret, to be copied. */
export function showSecret(secret, title) {
  return dialog(title, (close) =>
    el(
      "div",
      {},
      el("p", {}, "Its requests are signed with this secret (Standard Webhooks); the listener checks them with it:"),
      copyable(secret, "Signing secret"),
      el(
        "div",
        { class: "row" },
        button("Done", () => close(), { class: "primary" }),
      ),
    ),
  );
}

function beginning() {
  const options = [
    ["now", "what is put from now on"],
    ["beginning", "everything that the queue has had"],
  ];
  return { name: "from", label: "It gets", type: "select", options, value: "now" };
}

function created(given) {
  const body = { name: given.name, notify_url: given.notify_url, liveness_url: given.liveness_url, from: given.from };
  if (given.secret) body.secret = given.secret;
  for (const [name] of NUMBERS) if (given[name] !== "") body[name] = Number(given[name]);
  if (given.headers.trim()) body.headers = headersOf(given.headers);
  return body;
}

/** Only what is not as it was: URLs and headers are shown without their secret parts. */
function changed(given, was) {
  const body = {};
  for (const name of ["name", "notify_url", "liveness_url"]) if (given[name] !== was[name]) body[name] = given[name];
  for (const [name, , , unlimited] of NUMBERS) {
    const value = given[name] === "" ? null : Number(given[name]);
    if (value !== was[name] && (value !== null || unlimited)) body[name] = value;
  }
  if (given.headers !== headersText(was.headers)) body.headers = headersOf(given.headers);
  return body;
}
