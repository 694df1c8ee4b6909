// What happened to one delivery, step by step: put, attempts, parked, retried, delivered, and what comes next.
//
// For: the order of the steps and their elements. Not for: the page around them (message.js).

import { age, codeBlock, el, moment } from "./dom.js";
import { count, indented, outcome, shortened, stepsWords, took } from "./words.js";

/**
 * Return the steps of a delivery, oldest first: {at, title, tone, attempt, detail}. tone: good, bad, warn or "".
 * story: the events of the message in the log, if they are known. actor(text): the name of who caused an event.
 */
function stepsOf(message, delivery, story, actor) {
  const steps = [{ at: message.created_at, title: "Put" }];
  if (message.deliver_at && delivery.state !== "pending") steps.push({ at: message.deliver_at, title: "Scheduled for this time" });
  const own = story.filter((event) => event.listener_id === delivery.id);
  const parkedBy = new Set(
    own.filter((event) => event.type === "delivery.attempted" && event.outcome === "parked").map((event) => event.number),
  );
  const last = delivery.attempts[delivery.attempts.length - 1];
  for (const attempt of delivery.attempts) {
    const taken = attempt.status >= 200 && attempt.status < 300;
    const word = taken ? "Delivered" : "Failed";
    steps.push({ at: attempt.at, title: `${word} – attempt ${attempt.number}`, tone: taken ? "good" : "bad", attempt });
    if (parkedBy.has(attempt.number) || (attempt === last && delivery.state === "parked"))
      steps.push({ at: attempt.at, title: "Parked", tone: "bad", detail: "No attempts are left. “Retry now” sends it again." });
  }
  for (const event of own) {
    if (event.type === "listener.redriven") steps.push({ at: time(event), title: `Retried by ${actor(event.actor)}`, tone: "warn" });
    if (event.type === "listener.redrives_cancelled") steps.push({ at: time(event), title: `Retry cancelled by ${actor(event.actor)}`, tone: "warn" });
    if (event.type === "replay.started") steps.push({ at: time(event), title: `Replay started by ${actor(event.actor)}`, tone: "warn" });
  }
  for (const event of story) {
    if (event.type === "message.updated") steps.push({ at: time(event), title: `Data changed by ${actor(event.actor)}` });
  }
  return steps.map((step, index) => ({ ...step, index })).sort((one, other) => Date.parse(one.at) - Date.parse(other.at) || one.index - other.index);
}

function time(event) {
  return new Date(event.at_ms).toISOString();
}

/** Create the list of the steps, and of what comes next. open: the names of the attempts that are shown in full. */
export function timeline(message, delivery, story, actor, open) {
  const items = stepsOf(message, delivery, story, actor).map((step) => item(step, delivery, open));
  const next = nextStep(delivery);
  return el("ol", { class: "timeline", "aria-label": `Steps of the delivery to ${delivery.name}` }, items, next);
}

function item({ at, title, tone, attempt, detail }, delivery, open) {
  const head = el("div", { class: "head" }, el("strong", {}, title), attempt ? result(attempt) : null, age(at), moment(at));
  const more = attempt ? attemptDetails(attempt, `${delivery.id} ${attempt.number}`, open) : null;
  return el("li", { class: tone || "" }, head, detail ? el("div", { class: "quiet" }, detail) : null, more);
}

function result(attempt) {
  return el("span", {}, `${outcome(attempt.status, attempt.error)}, ${took(attempt.took_ms)}${stepsWords(attempt)}`);
}

function nextStep({ state, next_attempt_at: at }) {
  if (!at || !["retrying", "pending"].includes(state)) return null;
  const head = el("div", { class: "head" }, el("strong", {}, state === "pending" ? "First attempt" : "Next attempt"), age(at), moment(at));
  return el("li", { class: "warn" }, head);
}

/** Create the part that shows a request and its answer. Their text is the listener's, and stays text. */
function attemptDetails({ answer, number }, name, open) {
  if (!answer) return null;
  const headers = (rows) => rows.map((one) => `${one.name}: ${one.value}`).join("\n") || "none";
  const body = indented(answer.body) || answer.body;
  const cut = answer.truncated ? "\n[only the beginning was kept]" : "";
  return el(
    "details",
    { open: open.has(name), "data-attempt": name },
    el("summary", {}, `Request and answer of attempt ${number}: ${shortened(answer.body, 60) || count(answer.headers.length, "header")}`),
    el("h4", {}, "Request"),
    codeBlock(`POST ${answer.request.url}\n${headers(answer.request.headers)}`, `Request of attempt ${number}`),
    el("h4", {}, "Answer’s headers"),
    codeBlock(headers(answer.headers), `Headers of the answer to attempt ${number}`),
    el("h4", {}, "Answer’s body"),
    codeBlock(body ? `${body}${cut}` : "empty", `Body of the answer to attempt ${number}`),
  );
}
