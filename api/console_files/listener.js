// One listener: how it is doing, what it is told, what it still owes an attempt.

import { ask } from "./api.js";
import { line } from "./charts.js";
import { attemptsPicture } from "./attempts.js";
import { deliveriesPanel } from "./deliveries.js";
import {
  button,
  confirmed,
  dialog,
  el,
  facts,
  hash,
  link,
  moment,
  notice,
  panel,
  redraw,
  since,
  state,
} from "./dom.js";
import { form } from "./forms.js";
import { listenerForm, showSecret } from "./listenerform.js";
import { lookAtListener, poll, seen } from "./live.js";
import { replaysPanel } from "./replays.js";
import { count, duration, headersText, outcome, problemWords } from "./words.js";

const LOOK_MS = 3000;
const SPAN_MS = 10 * 60_000;

export async function showListener({ main, ids, signal }) {
  const queue = (await ask("getQueue", { ids, signal })).body.queue;
  let { listener, etag } = await lookAtListener(ids.queue_id, ids.listener_id, signal);
  const told = el("p", { class: "alert", hidden: true });
  const condition = el("div");
  const settings = el("div");
  const pausing = button("", () => pauseOrResume());
  const attempts = attemptsPicture(listener.id, SPAN_MS, signal);
  const deliveries = deliveriesPanel(ids, signal);

  async function look() {
    ({ listener, etag } = await lookAtListener(ids.queue_id, ids.listener_id, signal));
    draw();
  }

  function draw() {
    pausing.textContent = listener.paused === null ? "Pause" : "Resume";
    redraw(condition, conditionOf(listener));
    redraw(settings, settingsOf(listener));
  }

  async function pauseOrResume() {
    await said(async () => {
      await ask(listener.paused === null ? "pauseListener" : "resumeListener", { ids });
      await look();
    });
  }

  draw();
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " › ", link(["queues", queue.id], queue.name), " ›"),
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, listener.name),
      pausing,
      button("Test", () => test(ids, listener)),
      button("Change", () => listenerForm({ queue, listener, etag })),
      button("Secret", () => secret(ids)),
      button("Delete", () => remove(queue, listener), { class: "danger" }),
    ),
    told,
    el("div", { class: "columns" }, panel("Now", condition), panel("Attempts, the last 10 minutes", attempts.element)),
    deliveries.element,
    await replaysPanel(ids, signal),
    panel("Settings", settings),
  );
  poll(signal, LOOK_MS, look, told);
  poll(signal, LOOK_MS, attempts.look, told);
  poll(signal, 2 * LOOK_MS, deliveries.look, told);
}

function conditionOf(listener) {
  const waits = listener.lag
    ? [
        count(listener.lag, "message waits", "messages wait"),
        ", the oldest for ",
        since(listener.oldest_pending_at),
        ".",
      ]
    : ["Nothing waits for it."];
  return [
    el("p", { class: "big" }, state(listener.state || "unknown"), " ", ...waits),
    listener.paused !== null ? el("p", {}, `It is paused: ${listener.paused}.`) : null,
    listener.state === "down"
      ? el(
          "p",
          {},
          "It does not answer as it should. Its liveness_url is asked all the time; when it answers, it gets its messages at once. Meanwhile no attempts are used up.",
        )
      : null,
    listener.last_error ? el("p", { class: "alert" }, `Last error: ${listener.last_error}`) : null,
    line(seen(listener.id), { spanMs: SPAN_MS, what: "Messages that wait" }),
    el(
      "p",
      { class: "axis quiet" },
      el("span", {}, "10 minutes ago"),
      el("span", {}, "messages that wait"),
      el("span", {}, "now"),
    ),
  ].filter(Boolean);
}

function settingsOf(listener) {
  return facts([
    ["Listener", el("code", {}, listener.id)],
    ["notify_url", el("code", {}, listener.notify_url)],
    ["liveness_url", el("code", {}, listener.liveness_url)],
    ["Requests at once", String(listener.max_in_flight)],
    ["Deliveries a second", listener.rate_per_s === null ? "no limit" : String(listener.rate_per_s)],
    ["Time for an answer", duration(listener.timeout_ms / 1000)],
    ["Attempts", listener.max_attempts === null ? "no limit but time" : String(listener.max_attempts)],
    ["Time to try", duration(listener.max_age_s)],
    ["First and longest wait", `${duration(listener.retry_first_ms / 1000)}, ${duration(listener.retry_max_s)}`],
    Object.keys(listener.headers).length ? ["Headers", el("pre", {}, headersText(listener.headers))] : null,
    ["Made", moment(listener.created_at)],
  ]);
}

async function said(act) {
  try {
    await act();
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

async function test(ids, listener) {
  await said(async () => {
    const result = (await ask("testListener", { ids })).body.test;
    const good = result.status >= 200 && result.status < 300;
    await dialog(good ? "It took the test" : "It did not take the test", (close) =>
      el(
        "div",
        {},
        el(
          "p",
          {},
          `One marked message was sent to ${listener.notify_url}, past the queue: ${outcome(result.status, result.error)}, after ${result.took_ms} ms.`,
        ),
        el(
          "div",
          { class: "row" },
          button("Done", () => close(), { class: "primary" }),
        ),
      ),
    );
  });
}

async function secret(ids) {
  await said(async () => {
    const now = (await ask("getSecret", { ids })).body;
    const former = now.former.length
      ? `${count(now.former.length, "former secret")} sign${now.former.length === 1 ? "s" : ""}, too, until ${new Date(now.former[0].ends_at).toLocaleString()}.`
      : "";
    const chosen = await dialog("Signing secret", (close) =>
      el(
        "div",
        {},
        el("p", {}, "Requests to this listener are signed with it. Whoever knows it can make such requests. ", former),
        el(
          "div",
          { class: "row" },
          button("Show it", () => close("show"), { class: "primary" }),
          button("Change it…", () => close("rotate")),
          button("Cancel", () => close()),
        ),
      ),
    );
    if (chosen === "show") await showSecret(now.secret, "Signing secret");
    if (chosen === "rotate") await rotate(ids);
  });
}

function rotate(ids) {
  return dialog("Change the secret", (close) =>
    form({
      fields: [
        {
          name: "overlap_h",
          label: "Hours in which the former one signs, too",
          type: "number",
          min: 0,
          max: 168,
          step: "any",
          value: "24",
          required: true,
          hint: "Give the listener the new one in this time. 0, if others know the former one.",
        },
        { name: "secret", label: "New secret", hint: "whsec_…; empty: one is made." },
      ],
      submit: "Change it",
      cancel: () => close(),
      onSubmit: async (given) => {
        const body = { overlap_s: Math.round(Number(given.overlap_h) * 3600) };
        if (given.secret) body.secret = given.secret;
        const now = (await ask("rotateSecret", { ids, body })).body;
        close();
        await showSecret(now.secret, "The new secret");
      },
    }),
  );
}

async function remove(queue, listener) {
  const sure = await confirmed(`Delete “${listener.name}”?`, {
    explain: "What waits for it is cancelled. What happened stays in the log.",
    yes: "Delete the listener",
  });
  if (!sure) return;
  await said(async () => {
    await ask("deleteListener", { ids: { queue_id: queue.id, listener_id: listener.id } });
    notice(`The listener “${listener.name}” is deleted.`);
    location.hash = hash("queues", queue.id);
  });
}
