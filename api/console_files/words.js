// Sentences of the console: ages, delivery states, problems. Each function takes values and returns a string.
//
// For: text that more than one view shows, and the answer to "why is this not delivered yet?". Not for: elements (dom.js).

const UNITS = [
  ["d", 86_400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** Return a duration in its two largest units, such as “1 h 5 min”. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds > 0 && seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  let left = Math.max(0, Math.round(seconds));
  if (left === 0) return "0 s";
  const parts = [];
  for (const [unit, size] of UNITS) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || parts.length) parts.push(count ? `${count} ${unit}` : "");
    if (parts.length === 2) break;
  }
  return parts.filter(Boolean).join(" ");
}

/** Return how long ago a time was (“5 min ago”), or how far ahead it is (“in 5 min”). */
export function ago(time, nowMs) {
  if (!time) return "–";
  const seconds = (nowMs - Date.parse(time)) / 1000;
  if (Math.abs(seconds) < 1) return "now";
  return seconds > 0 ? `${duration(seconds)} ago` : `in ${duration(-seconds)}`;
}

export function count(number, one, more = `${one}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? one : more}`;
}

export function shortened(text, length) {
  const characters = [...text.slice(0, 2 * length + 2)];
  return characters.length > length ? `${characters.slice(0, length).join("")}…` : text;
}

/** Return the result of an attempt: its HTTP status, or why there was no answer. */
export function outcome(status, error) {
  if (status !== null && status !== undefined) return error ? `HTTP ${status}, ${error}` : `HTTP ${status}`;
  return error ? `no answer: ${error}` : "no answer";
}

/** Return a time in milliseconds in its most readable unit, such as “2.5 s”. */
export function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : ms < 60_000 ? `${Math.round(ms / 100) / 10} s` : duration(ms / 1000);
}

/** Return the duration of an attempt. */
export function took(ms) {
  return ms === null || ms === undefined ? "not measured" : ms < 1 ? "under 1 ms" : `${ms} ms`;
}

/** Return the known steps of an attempt, in parentheses after a space. */
export function stepsWords(attempt) {
  const steps = [
    ["DNS", attempt.dns_ms],
    ["connect", attempt.connect_ms],
    ["TLS", attempt.tls_ms],
  ];
  const known = steps.filter(([, ms]) => ms !== undefined && ms !== null).map(([name, ms]) => `${name} ${took(ms)}`);
  return known.length ? ` (${known.join(", ")})` : "";
}

/** Return what was sent and answered, as text. */
export function replyText(answer) {
  const lines = (headers) => headers.map((one) => `${one.name}: ${one.value}`);
  const cut = answer.truncated ? ["[only the beginning was kept]"] : [];
  return [
    `POST ${answer.request.url}`,
    ...lines(answer.request.headers),
    "",
    "Answer:",
    ...lines(answer.headers),
    "",
    answer.body,
    ...cut,
  ].join("\n");
}

/**
 * Explain a delivery's state, and what to do about it, in a sentence or two.
 * listener: as GET returned it just now; null if that is not known.
 */
export function deliverySentence(delivery, listener, message, nowMs) {
  const last = delivery.attempts[delivery.attempts.length - 1];
  const failed = last ? `Attempt ${last.number} failed (${outcome(last.status, last.error)}).` : "";
  const paused = listener && listener.paused !== null && listener.paused !== undefined;
  switch (delivery.state) {
    case "delivered":
      return last
        ? `Delivered ${ago(last.at, nowMs)} by attempt ${last.number} (${outcome(last.status, last.error)}, ${took(last.took_ms)}).`
        : "Delivered.";
    case "parked":
      return `${failed} Parked: no more attempts follow until you choose “Retry now”.`.trim();
    case "cancelled":
      return "Cancelled: the message or its listener was deleted before the delivery.";
    case "retrying":
      if (paused) return `${failed} ${pausedSentence(listener)}`.trim();
      return `${failed} The next attempt is ${delivery.next_attempt_at ? ago(delivery.next_attempt_at, nowMs) : "soon"}.`.trim();
    case "pending":
      return pendingSentence(delivery, listener, message, nowMs, failed, paused);
    default:
      return "The state is not known here. Open the message's events in the log to see each attempt.";
  }
}

/** Return a URL's host and path, shortened. */
export function hostAndPath(url) {
  try {
    const { host, pathname } = new URL(url);
    return shortened(pathname === "/" ? host : `${host}${pathname}`, 60);
  } catch {
    return shortened(url, 60);
  }
}

/** Return how many of a listener's attempts in the last five minutes failed, such as “3 of 4 attempts”; “–” without attempts. */
export function recentFailures({ recent_failures: failures = 0, recent_attempts: attempts = 0 }) {
  return attempts ? `${failures.toLocaleString("en")} of ${count(attempts, "attempt")}` : "–";
}

/** The states of a listener, from the worst to the best. */
export const HEALTHS = ["down", "failing", "paused", "replaying", "new", "healthy"];

/** Return the word for a listener's state: its health, or what a server says that does not know its health. */
export function healthOf(listener) {
  return listener.health || listener.state || "unknown";
}

/** Describe a listener's state in sentences, each of which is true of it now. */
export function healthSentences(listener, nowMs) {
  const said = [];
  const recent = `${recentFailures(listener)} in the last 5 minutes failed.`;
  switch (healthOf(listener)) {
    case "paused":
      said.push(`The listener is paused (${listener.paused}). Nothing is sent to it until you choose “Resume”.`);
      break;
    case "down":
      said.push(
        "The listener does not accept messages. Everput checks its liveness_url and sends the backlog as soon as that answers. Meanwhile no attempts are used up.",
      );
      break;
    case "failing":
      said.push(
        listener.recent_attempts
          ? `Too many attempts fail: ${recent}`
          : `The last attempt failed ${ago(listener.last_failure_at, nowMs)}.`,
      );
      break;
    case "new":
      said.push("No attempt has ended yet.");
      break;
    case "replaying":
      said.push("A replay to the listener is running.");
      break;
    case "healthy":
      said.push("The listener accepts messages.");
  }
  if (healthOf(listener) !== "failing" && listener.recent_failures) said.push(recent);
  if (listener.retrying) said.push(`${count(listener.retrying, "delivery", "deliveries")} failed and will be retried.`);
  if (listener.parked)
    said.push(
      `${count(listener.parked, "delivery", "deliveries")} parked: no more attempts follow until you choose “Retry all”.`,
    );
  return said;
}

/** Describe an empty list of deliveries. The list lacks those that failed a moment ago and wait for a near retry. */
export function noDeliveries(state) {
  switch (state) {
    case "parked":
      return "No deliveries are parked.";
    case "retrying":
      return "No delivery that failed for over a minute is retrying.";
    case "pending":
      return "No deliveries wait for their time.";
    default:
      return "No deliveries are parked, and none has failed for over a minute.";
  }
}

function pendingSentence(delivery, listener, message, nowMs, failed, paused) {
  if (message.deliver_at && Date.parse(message.deliver_at) > nowMs) {
    return `Scheduled: not delivered before ${message.deliver_at} (${ago(message.deliver_at, nowMs)}).`;
  }
  if (paused) return pausedSentence(listener);
  if (listener && healthOf(listener) === "down") {
    const error = listener.last_error ? ` (${listener.last_error})` : "";
    return `${failed} The listener is down${error}. Everput checks its liveness_url and sends the message as soon as that answers.`.trim();
  }
  if (failed)
    return `${failed} The next attempt is ${delivery.next_attempt_at ? ago(delivery.next_attempt_at, nowMs) : "soon"}.`;
  if (listener && listener.lag > 1)
    return `Waiting: ${count(listener.lag, "message")} for this listener are not settled yet.`;
  return "Waiting to be sent.";
}

function pausedSentence(listener) {
  return `The listener is paused (${listener.paused}). Resume it to continue.`;
}

/** Describe a problem, and when to try again. */
export function problemWords(problem) {
  const places = (problem.errors || []).map((one) => {
    const where = one.pointer ? one.pointer.slice(1) : one.parameter || one.header || "";
    return where ? `${where}: ${one.detail}` : one.detail;
  });
  const sentences = (places.length ? places : [problem.message]).map(sentence).join(" ");
  const again = problem.retryAfterS ? ` Try again in ${duration(problem.retryAfterS)}.` : "";
  if (problem.status === 412)
    return "Somebody else changed this in the meantime. Close this form, check the new values, and try again.";
  return `${again ? sentences.replace(/ Try again later\.$/, "") : sentences}${again}`;
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

/** Return the data as indented JSON; null if it is not a JSON object or array. */
export function indented(data) {
  if (!/^\s*[[{]/.test(data)) return null;
  try {
    return JSON.stringify(JSON.parse(data), null, 2);
  } catch {
    return null;
  }
}

/** Parse lines of “Name: value” into an object. Throws an Error that quotes the first line of another form. */
export function headersOf(text) {
  const headers = {};
  for (const line of text.split("\n").filter((one) => one.trim())) {
    const colon = line.indexOf(":");
    if (colon < 1) throw new Error(`Headers: write each line as “Name: value”; “${shortened(line, 40)}” is not.`);
    headers[line.slice(0, colon).trim()] = line.slice(colon + 1).trim();
  }
  return headers;
}

export function headersText(headers) {
  return Object.entries(headers || {})
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}

/** Return a size in its most readable unit, such as “1.5 KiB”. */
export function bytes(size) {
  if (size < 1024) return `${size} B`;
  const [unit, of] = size < 1024 ** 2 ? ["KiB", 1024] : ["MiB", 1024 ** 2];
  return `${(Math.round((10 * size) / of) / 10).toLocaleString("en")} ${unit}`;
}

// What needs attention comes first.
const DELIVERY_STATES = ["parked", "retrying", "unknown", "pending", "scheduled", "cancelled", "delivered"];
const NAMED_MAX = 2;
const LISTED_MAX = 10;

/** Count a message's deliveries by state: {state, text, names} of each state that occurs, the worst first. */
export function deliveryCounts(deliveries) {
  const found = [];
  for (const state of DELIVERY_STATES) {
    const those = deliveries.filter((one) => one.state === state);
    if (!those.length) continue;
    const tried = (one) => (state !== "delivered" && one.attempts ? ` (${count(one.attempts, "attempt")})` : "");
    const listed = those.slice(0, LISTED_MAX).map((one) => `${one.name}${tried(one)}`);
    const names = those.length > LISTED_MAX ? `${listed.join(", ")} and ${those.length - LISTED_MAX} more` : listed.join(", ");
    let text = `${those.length} ${state}`;
    if (deliveries.length === 1) text = `${state}${tried(those[0])}`;
    else if (state !== "delivered" && those.length <= NAMED_MAX)
      text = `${state}: ${those.map((one) => `${shortened(one.name, 30)}${tried(one)}`).join(", ")}`;
    found.push({ state, text, names });
  }
  return found;
}

const COMMON = new Set(["type", "v", "at_ms", "organization_id", "actor", "request_id"]);

/** Return an event's own fields on one line, without its time, type and actor. */
export function eventWords(event) {
  return Object.entries(event)
    .filter(([name, value]) => !COMMON.has(name) && value !== null)
    .map(([name, value]) => `${name} ${shortened(typeof value === "string" ? value : JSON.stringify(value), 60)}`)
    .join(" · ");
}
