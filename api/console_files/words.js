// What is said about things: ages, sentences, problems. Strings in, strings out.
//
// For: words that more than one view says, and "why isn't it delivered yet?". Not for: elements (dom.js).

const UNITS = [
  ["d", 86_400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** A duration, of its two largest units. */
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

/** How long ago a time was, or how far ahead it is. */
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

/** What an attempt came to. */
export function outcome(status, error) {
  if (status !== null && status !== undefined) return `HTTP ${status}`;
  return error ? `no answer: ${error}` : "no answer";
}

/**
 * Why a delivery is as it is, and what can be done, in a sentence or two.
 * listener: as GET tells it now, null where that is not known.
 */
export function deliverySentence(delivery, listener, message, nowMs) {
  const last = delivery.attempts[delivery.attempts.length - 1];
  const failed = last ? `Attempt ${last.number} failed (${outcome(last.status, last.error)}).` : "";
  const paused = listener && listener.paused !== null && listener.paused !== undefined;
  switch (delivery.state) {
    case "delivered":
      return last
        ? `Delivered ${ago(last.at, nowMs)}, at attempt ${last.number} (${outcome(last.status, last.error)}, ${last.took_ms} ms).`
        : "Delivered.";
    case "parked":
      return `${failed || "Its attempts failed."} There are no more attempts: it is kept until somebody redrives it.`;
    case "cancelled":
      return "Cancelled: the message or the listener was deleted before it was sent.";
    case "retrying":
      if (paused) return `${failed} The listener is paused (${listener.paused}): resume it.`;
      return `${failed} The next attempt is ${delivery.next_attempt_at ? ago(delivery.next_attempt_at, nowMs) : "soon"}.`.trim();
    case "pending":
      return pendingSentence(delivery, listener, message, nowMs, failed, paused);
    default:
      return "Too much has been put since to tell from here: look into the log.";
  }
}

function pendingSentence(delivery, listener, message, nowMs, failed, paused) {
  if (message.deliver_at && Date.parse(message.deliver_at) > nowMs) {
    return `It is not to be delivered before ${message.deliver_at} (${ago(message.deliver_at, nowMs)}).`;
  }
  if (paused) return `The listener is paused (${listener.paused}): resume it.`;
  if (listener && listener.state === "down") {
    const error = listener.last_error ? ` (${listener.last_error})` : "";
    return `${failed} The listener is down${error}. Its liveness_url is asked all the time; when it answers, this is sent at once.`.trim();
  }
  if (failed)
    return `${failed} It is tried again ${delivery.next_attempt_at ? ago(delivery.next_attempt_at, nowMs) : "in a moment"}.`;
  if (listener && listener.lag > 1)
    return `It waits in line: ${count(listener.lag, "message")} for this listener are not settled.`;
  return "It is about to be sent.";
}

/** What went wrong, for a person. */
export function problemWords(problem) {
  const places = (problem.errors || []).map((one) => {
    const where = one.pointer ? one.pointer.slice(1) : one.parameter || one.header || "";
    return where ? `${where}: ${one.detail}` : one.detail;
  });
  const said = places.length ? places.join("; ") : problem.message;
  const again = problem.retryAfterS ? ` Try again in ${duration(problem.retryAfterS)}.` : "";
  if (problem.status === 412)
    return "Somebody has changed it meanwhile. Close this, look at it again, and then change it.";
  return `${said.charAt(0).toUpperCase()}${said.slice(1)}${/[.!?]$/.test(said) ? "" : "."}${again}`;
}

/** The data as indented JSON, null when it is no object or array. */
export function indented(data) {
  if (!/^\s*[[{]/.test(data)) return null;
  try {
    return JSON.stringify(JSON.parse(data), null, 2);
  } catch {
    return null;
  }
}

/** "Name: value" on each line, as an object; throws an Error that says which line is none. */
export function headersOf(text) {
  const headers = {};
  for (const line of text.split("\n").filter((one) => one.trim())) {
    const colon = line.indexOf(":");
    if (colon < 1) throw new Error(`headers: “${shortened(line, 40)}” is no line such as “Name: value”.`);
    headers[line.slice(0, colon).trim()] = line.slice(colon + 1).trim();
  }
  return headers;
}

export function headersText(headers) {
  return Object.entries(headers || {})
    .map(([name, value]) => `${name}: ${value}`)
    .join("\n");
}

const COMMON = new Set(["type", "v", "at_ms", "organization_id", "actor", "request_id"]);

/** What an event of the log says, beside its time, type and actor, on one line. */
export function eventWords(event) {
  return Object.entries(event)
    .filter(([name, value]) => !COMMON.has(name) && value !== null)
    .map(([name, value]) => `${name} ${shortened(typeof value === "string" ? value : JSON.stringify(value), 60)}`)
    .join(" · ");
}
