// The page of one listener: its state, attempts, retrying and parked deliveries, replays, settings.

import { ask } from "./api.js";
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
  noticed,
  panel,
  redraw,
  since,
  state,
} from "./dom.js";
import { form } from "./forms.js";
import { historyCharts } from "./history.js";
import { keep, kept } from "./kept.js";
import { listenerForm, showSecret } from "./listenerform.js";
import { concerns, lookAtListener, poll } from "./live.js";
import { paces, progressBar } from "./progress.js";
import { replaysPanel } from "./replays.js";
import { thresholdWords } from "./thresholds.js";
import {
  count,
  duration,
  headersText,
  healthOf,
  healthSentences,
  outcome,
  replyText,
  stepsWords,
  took,
} from "./words.js";

const LOOK_MS = 3000;

export async function showListener({ main, ids, query, signal }) {
  const queue = (await ask("getQueue", { ids, signal })).body.queue;
  let { listener, etag } = await lookAtListener(ids.queue_id, ids.listener_id, signal);
  const told = el("p", { class: "alert", hidden: true });
  const condition = el("div");
  const settings = el("div");
  const pausing = button("", () => pauseOrResume(), { needs: "pauseListener" });
  const redrive = el("div", { hidden: true });
  const pace = paces();
  // The retries that the page shows, kept when it is loaded again: {all, rest}. `all` counts the deliveries that are
  // retried, `rest` the others that were parked or retrying then. Null if the page shows none.
  const retriesName = `retries ${ids.listener_id}`;
  let redriving = JSON.parse(kept(retriesName));
  const deliveries = deliveriesPanel(ids, signal, (all) => {
    showRetries(all === null ? null : { all, rest: Math.max(0, outstanding() - all) });
  });

  function showRetries(shown) {
    redriving = shown;
    keep(retriesName, shown && JSON.stringify(shown));
    draw();
  }

  async function look() {
    ({ listener, etag } = await lookAtListener(ids.queue_id, ids.listener_id, signal));
    draw();
  }

  function outstanding() {
    return (listener.parked || 0) + (listener.retrying || 0);
  }

  /** Show how many of the retried deliveries are not parked or retrying any more. */
  function drawRedrive() {
    redrive.hidden = redriving === null;
    if (redriving === null) return;
    const done = Math.max(0, redriving.all - Math.max(0, outstanding() - redriving.rest));
    if (done >= redriving.all) keep(retriesName, null);
    const bar = progressBar({ done, all: redriving.all, noun: "retried message", perS: pace("redrive", done), label: "Progress of the retries" });
    const close = button("Close", () => showRetries(null));
    redraw(redrive, panel("Retries", bar, close));
  }

  function draw() {
    drawRedrive();
    pausing.textContent = listener.paused === null ? "Pause" : "Resume";
    redraw(condition, conditionOf(listener));
    redraw(settings, settingsOf(listener, queue));
  }

  async function pauseOrResume() {
    await noticed(async () => {
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
      button("Send test", () => test(ids, listener), { needs: "testListener" }),
      button("Edit", () => listenerForm({ queue, listener, etag }), { needs: "updateListener" }),
      button("Manage secret", () => secret(ids), { needs: "getSecret" }),
      button("Delete", () => remove(queue, listener), { needs: "deleteListener", class: "danger" }),
    ),
    told,
    panel("State", condition),
    historyCharts({ operation: "getListenerStatistics", ids, query, signal, told }),
    redrive,
    deliveries.element,
    await replaysPanel(ids, signal),
    panel("Settings", settings),
  );
  const about = concerns(ids, "listener", "message", "delivery", "replay");
  poll(signal, LOOK_MS, look, told, null, about);
  poll(signal, 2 * LOOK_MS, deliveries.look, told, null, concerns(ids, "listener", "delivery"));
}

function conditionOf(listener) {
  const waits = listener.lag
    ? [
        count(listener.lag, "message"),
        " in the backlog, the oldest for ",
        since(listener.oldest_pending_at),
        ".",
      ]
    : ["The backlog is empty."];
  return [
    el("p", { class: "big" }, state(healthOf(listener)), " ", ...waits),
    ...healthSentences(listener, Date.now()).map((one) => el("p", {}, one)),
    listener.last_error ? el("p", { class: "alert" }, `Last error: ${listener.last_error}`) : null,
  ].filter(Boolean);
}

function settingsOf(listener, queue) {
  return facts([
    ["Listener ID", el("code", {}, listener.id)],
    ["notify_url", el("code", {}, listener.notify_url)],
    ["liveness_url", el("code", {}, listener.liveness_url)],
    ["Concurrent requests, at most", String(listener.max_in_flight)],
    ["Deliveries per second, at most", listener.rate_per_s === null ? "no limit" : String(listener.rate_per_s)],
    ["Messages in a request, at most", listener.batch === null ? "1" : batchWords(listener.batch)],
    ["Timeout of an attempt", duration(listener.timeout_ms / 1000)],
    ["Attempts, at most", listener.max_attempts === null ? "no limit" : String(listener.max_attempts)],
    ["Retried for", duration(listener.max_age_s)],
    ["First and longest retry delay", `${duration(listener.retry_first_ms / 1000)}, ${duration(listener.retry_max_s)}`],
    Object.keys(listener.headers).length ? ["Headers", el("pre", {}, headersText(listener.headers))] : null,
    ["Alerts", thresholdWords(listener, queue)],
    ["Created", moment(listener.created_at)],
  ]);
}

function batchWords(batch) {
  return `${batch.max_messages.toLocaleString()}, in ${batch.max_bytes.toLocaleString()} bytes, collected for ${duration(batch.wait_ms / 1000)}`;
}

async function test(ids, listener) {
  await noticed(async () => {
    const result = (await ask("testListener", { ids })).body.test;
    const good = result.status >= 200 && result.status < 300 && !result.error;
    await dialog(good ? "The listener accepted the test" : "The listener did not accept the test", (close) =>
      el(
        "div",
        {},
        el(
          "p",
          {},
          `Everput sent ${result.batch_id ? "a batch of " : ""}one test message to ${listener.notify_url}, bypassing the queue. Result: ${outcome(result.status, result.error)}, after ${took(result.took_ms)}${stepsWords(result)}.`,
        ),
        result.answer ? el("pre", {}, replyText(result.answer)) : null,
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
  await noticed(async () => {
    const now = (await ask("getSecret", { ids })).body;
    const former = now.former.length
      ? `Requests are also signed with ${count(now.former.length, "previous secret")}, until ${new Date(now.former[0].ends_at).toLocaleString()}.`
      : "";
    const chosen = await dialog("Signing secret", (close) =>
      el(
        "div",
        {},
        el("p", {}, "Everput signs each request to this listener with the secret. Anybody who knows it can forge such requests. ", former),
        el(
          "div",
          { class: "row" },
          button("Show secret", () => close("show"), { class: "primary" }),
          button("Rotate secret…", () => close("rotate")),
          button("Cancel", () => close()),
        ),
      ),
    );
    if (chosen === "show") await showSecret(now.secret, "Signing secret");
    if (chosen === "rotate") await rotate(ids);
  });
}

function rotate(ids) {
  return dialog("Rotate signing secret", (close) =>
    form({
      fields: [
        {
          name: "overlap_h",
          label: "Overlap, in hours",
          type: "number",
          min: 0,
          max: 168,
          step: "any",
          value: "24",
          required: true,
          hint: "Requests carry signatures of both secrets for this long: give the listener the new one in that time. If the old secret has leaked, enter 0.",
        },
        { name: "secret", label: "New secret", hint: "Starts with whsec_. Leave empty to generate one." },
      ],
      submit: "Rotate secret",
      cancel: () => close(),
      onSubmit: async (given) => {
        const body = { overlap_s: Math.round(Number(given.overlap_h) * 3600) };
        if (given.secret) body.secret = given.secret;
        const now = (await ask("rotateSecret", { ids, body })).body;
        close();
        await showSecret(now.secret, "New signing secret");
      },
    }),
  );
}

async function remove(queue, listener) {
  const sure = await confirmed(`Delete listener “${listener.name}”?`, {
    explain: "This cancels its undelivered messages. The log keeps what happened. This can't be undone.",
    yes: "Delete listener",
  });
  if (!sure) return;
  await noticed(async () => {
    await ask("deleteListener", { ids: { queue_id: queue.id, listener_id: listener.id } });
    notice(`Listener “${listener.name}” deleted.`);
    location.hash = hash("queues", queue.id);
  });
}
