// The form that creates or edits a listener.

import { ask } from "./api.js";
import { button, copyable, dialog, el, hash } from "./dom.js";
import { form } from "./forms.js";
import { changedThresholds, thresholdFields } from "./thresholds.js";
import { headersOf, headersText } from "./words.js";

// [name, label, hint, whether an empty field means "no limit"]
const NUMBERS = [
  ["max_in_flight", "Concurrent requests", "At most this many requests to the listener at a time.", false],
  ["rate_per_s", "Deliveries per second", "At most. Leave empty for no limit.", true],
  ["timeout_ms", "Timeout, ms", "An attempt without an answer by then has failed.", false],
  ["max_attempts", "Attempts", "A delivery is parked after this many. Leave empty for no limit.", true],
  ["max_age_s", "Retry for, s", "A delivery is parked this long after its first attempt.", false],
  ["retry_first_ms", "First retry delay, ms", "Doubles with each failure.", false],
  ["retry_max_s", "Longest retry delay, s", "The delay stops doubling here.", false],
];

// The same for the fields of `batch`.
const BATCH = [
  ["max_messages", "Messages in a request", "At most this many messages, as a JSON array. Leave empty for one message in each request."],
  ["max_bytes", "Bytes in a request", "At most this many bytes, if a request carries several messages. A larger message is sent alone."],
  ["wait_ms", "Wait for more messages, ms", "A request with several messages is sent at the latest after this time."],
];

/** Open the form for a new listener of a queue or, with listener and etag, for an existing one. */
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
      hint: "Everput sends each message here by POST. A 2xx status accepts it.",
    },
    {
      name: "liveness_url",
      label: "liveness_url",
      type: "text",
      inputmode: "url",
      required: true,
      value: was.liveness_url,
      hint: "Everput checks this URL while deliveries fail. A 2xx status resumes them.",
    },
    ...(fresh
      ? [beginning(), { name: "secret", label: "Signing secret", advanced: true, hint: "Starts with whsec_. Leave empty to generate one." }]
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
    ...BATCH.map(([name, label, hint]) => ({
      name: `batch.${name}`,
      label,
      hint,
      advanced: true,
      type: "number",
      min: 0,
      value: was.batch ? was.batch[name] : "",
    })),
    ...thresholdFields(was, queue),
    {
      name: "headers",
      label: "Headers",
      type: "textarea",
      advanced: true,
      value: headersText(was.headers),
      hint: "Sent with each request; one “Name: value” a line. Saved values are shown as …; leave the … to keep a value. If you change the scheme, host or port of notify_url, enter the values again.",
    },
  ];
  return dialog(fresh ? "Create listener" : "Edit listener", (close) =>
    form({
      fields,
      submit: fresh ? "Create listener" : "Save",
      cancel: () => close(),
      onSubmit: async (given) => {
        const body = { ...(fresh ? created(given) : changed(given, was)), ...changedThresholds(given, was) };
        if (!fresh) {
          if (Object.keys(body).length)
            await ask("updateListener", { ids: { queue_id: queue.id, listener_id: was.id }, body, ifMatch: etag });
          close("saved");
          window.dispatchEvent(new Event("hashchange"));
          return;
        }
        const made = (await ask("createListener", { ids: { queue_id: queue.id }, body })).body.listener;
        close();
        await showSecret(made.secret, `Listener “${made.name}” created`);
        location.hash = hash("queues", queue.id, "listeners", made.id);
      },
    }),
  );
}

/** Show a signing secret with a button that copies it. */
export function showSecret(secret, title) {
  return dialog(title, (close) =>
    el(
      "div",
      {},
      el(
        "p",
        {},
        "Everput signs each request with this secret (Standard Webhooks). Give it to the listener, so that it can verify the signatures:",
      ),
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
    ["now", "messages put from now on"],
    ["beginning", "all messages of the queue, from the beginning"],
  ];
  return { name: "from", label: "Deliver", type: "select", options, value: "now" };
}

function created(given) {
  const body = { name: given.name, notify_url: given.notify_url, liveness_url: given.liveness_url, from: given.from };
  if (given.secret) body.secret = given.secret;
  for (const [name] of NUMBERS) if (given[name] !== "") body[name] = Number(given[name]);
  if (given.headers.trim()) body.headers = headersOf(given.headers);
  const batch = batchOf(given);
  if (batch) body.batch = batch;
  return body;
}

/** Return the setting `batch` of the form: null for one message in each request. Empty fields get their defaults. */
function batchOf(given) {
  if (given["batch.max_messages"] === "") return null;
  const filled = BATCH.filter(([name]) => given[`batch.${name}`] !== "");
  return Object.fromEntries(filled.map(([name]) => [name, Number(given[`batch.${name}`])]));
}

/** Return only the fields that differ. URLs and headers are shown without their secret parts, so unchanged ones are not sent. */
function changed(given, was) {
  const body = {};
  for (const name of ["name", "notify_url", "liveness_url"]) if (given[name] !== was[name]) body[name] = given[name];
  for (const [name, , , unlimited] of NUMBERS) {
    const value = given[name] === "" ? null : Number(given[name]);
    if (value !== was[name] && (value !== null || unlimited)) body[name] = value;
  }
  const batch = batchOf(given);
  const same = batch && was.batch ? BATCH.every(([name]) => batch[name] === was.batch[name]) : !batch && !was.batch;
  if (!same) body.batch = batch;
  if (given.headers !== headersText(was.headers)) body.headers = headersOf(given.headers);
  return body;
}
