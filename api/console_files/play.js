// The play inbox: this page as a listener of a queue. It shows each delivery as it comes, and answers as chosen.
//
// For: the WebSocket of a tunnel (docs/decisions/0060), the signature check, the deliveries on the page. Not for: a listener
// that stays. The inbox's listener is deleted when its page is left.

import { ask, session, socketOf } from "./api.js";
import { button, codeBlock, el, facts, link, moment, notice, panel } from "./dom.js";
import { count, indented, problemWords, shortened } from "./words.js";

const SHOWN_MAX = 100;
const BODY_CHARS_MAX = 100_000;
const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 10_000;
// The close codes of api/tunnel.py.
const REVOKED = 4401;
const DELETED = 4404;
const TAKEN_OVER = 4409;
const SLOW_MS = 10_000;
// [value, label, the answer's fields, the delay]
const ANSWERS = [
  ["200", "200 – accept", { status: 200 }, 0],
  ["500", "500 – fail", { status: 500 }, 0],
  ["503", "503 with Retry-After: 5 s", { status: 503, retry_after: 5 }, 0],
  ["slow", "200 after 10 s – slow", { status: 200 }, SLOW_MS],
];

let removing = Promise.resolve();

/** Resolves when the listener of an inbox that was left is deleted. */
export function inboxRemoved() {
  return removing;
}

export async function showPlay({ main, ids, signal }) {
  const { queue } = (await ask("getQueue", { ids, signal })).body;
  main.replaceChildren(
    el("p", { class: "way" }, link(["queues"], "Queues"), " › ", link(["queues", queue.id], queue.name), " ›"),
    el("div", { class: "title" }, el("h1", { tabindex: "-1" }, "Play inbox"), button("Put test message", () => putTest(queue), { needs: "putMessage", class: "primary" })),
    el("p", { class: "quiet" }, "While this page is open, it is a listener of the queue. Choose how it answers, and watch Everput retry."),
    inbox(queue, signal),
  );
}

async function putTest(queue) {
  try {
    const data = JSON.stringify({ hello: "from the console", at: new Date().toISOString() });
    await ask("putMessage", { ids: { queue_id: queue.id }, body: { data } });
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}

/** Open an inbox for a queue, and return its element. signal: aborts when the page is left. delivered(): called at each delivery. */
export function inbox(queue, signal, delivered = () => {}) {
  const status = el("p", { role: "status" }, "Connecting…");
  const choice = el("select", { id: "play-answer" }, ANSWERS.map(([value, label]) => el("option", { value }, label)));
  const empty = el("p", { class: "quiet" }, "No deliveries yet. Put a message on the queue.");
  const list = el("ol", { class: "inbox", "aria-label": "Deliveries, newest first", "aria-live": "polite", "aria-relevant": "additions" });
  const again = button("Start again", () => connect(), { hidden: true });
  const name = `Play inbox of ${session.account.email}`;
  const { organization } = session;
  let left = false;
  let listener = null;
  let secret = null;
  let received = 0;
  let socket = null;
  let pauseMs = RETRY_MS_MIN;

  const say = (...parts) => status.replaceChildren(...parts);

  async function connect() {
    again.hidden = true;
    try {
      // If the connection is refused, a browser does not say why. This request does.
      await ask("getQueue", { ids: { queue_id: queue.id }, signal });
    } catch (error) {
      if (!left) later(problemWords(error));
      return;
    }
    if (left) return;
    socket = socketOf(queue.id, name);
    let opened = false;
    socket.addEventListener("message", ({ data }) => {
      const message = JSON.parse(data);
      if (message.type === "listening") {
        opened = true;
        pauseMs = RETRY_MS_MIN;
        listener = message.listener;
        if (left) leave(); // the page was left while it connected
        else say(el("span", { class: "state live" }, "listening"), " Each message that is put on this queue from now on appears here.");
      } else if (message.type === "live") reply(socket, message.number, { alive: true });
      else if (message.type === "request") deliver(socket, message);
    });
    socket.addEventListener("close", ({ code, reason }) => {
      if (left) return;
      if (code === TAKEN_OVER) stopped("Another tab has opened this inbox.");
      else if (code === REVOKED) stopped(`The inbox has ended: ${reason}.`);
      else if (code === DELETED) {
        listener = null;
        later("The inbox's listener was deleted.");
      } else later(opened ? "The connection was lost." : "The inbox could not be opened.");
    });
  }

  function stopped(why) {
    listener = null;
    say(el("span", { class: "state paused" }, "stopped"), ` ${why}`);
    again.hidden = false;
  }

  function later(why) {
    say(el("span", { class: "state down" }, "not connected"), ` ${why} Trying again…`);
    const timer = setTimeout(connect, pauseMs);
    signal.addEventListener("abort", () => clearTimeout(timer));
    pauseMs = Math.min(pauseMs * 2, RETRY_MS_MAX);
  }

  async function deliver(from, message) {
    const [, label, fields, delayMs] = ANSWERS.find(([value]) => value === choice.value);
    received += 1;
    empty.hidden = true;
    const entry = deliveryEntry(message, received);
    list.prepend(entry.element);
    if (list.children.length > SHOWN_MAX) list.lastChild.remove();
    const answered = async () => {
      entry.answer(delayMs ? "answers 200 in 10 s…" : `answered ${label.split(" – ")[0]}`);
      if (delayMs) await new Promise((resolve) => setTimeout(resolve, delayMs));
      reply(from, message.number, fields);
      if (delayMs) entry.answer("answered 200 after 10 s");
    };
    const checked = async () => entry.signature(await signatureOf(message));
    await Promise.all([answered(), checked()]);
    delivered();
  }

  async function signatureOf(message) {
    if (!crypto.subtle) return null;
    if (secret !== null && (await isSigned(message, secret))) return true;
    try {
      // The secret may have been rotated since it was read.
      secret = (await ask("getSecret", { ids: { queue_id: queue.id, listener_id: listener.id }, signal })).body.secret;
      return await isSigned(message, secret);
    } catch {
      return null;
    }
  }

  function leave() {
    left = true;
    if (listener === null) return; // if it is connecting, it leaves then
    socket.close();
    const ids = { queue_id: queue.id, listener_id: listener.id };
    listener = null;
    removing = ask("deleteListener", { ids, organization, keepalive: true }).catch(() => {}); // it may be deleted already
  }

  signal.addEventListener("abort", leave);
  window.addEventListener("pagehide", leave, { signal });
  // A browser may show a page again that was left.
  const resume = (event) => {
    left = false;
    if (event.persisted) connect();
  };
  window.addEventListener("pageshow", resume, { signal });
  connect();
  return panel(
    "Deliveries",
    el("div", { class: "row" }, el("label", { for: "play-answer" }, "Answer with"), choice, button("Clear", () => { list.replaceChildren(); empty.hidden = false; }), again),
    status,
    empty,
    list,
    el("p", { class: "hint" }, `The inbox is the listener “${name}”. Everput deletes it when you leave this page. If the browser crashes, the listener stays: open the inbox again, or delete the listener on the page of its queue.`),
  );
}

function reply(socket, number, fields) {
  if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ number, ...fields }));
}

/** Create the entry of one delivery: {element, answer(text), signature(whether it is right; null if unknown)}. */
function deliveryEntry({ headers, body }, number) {
  const known = messageOf(body);
  const attempt = headers["everput-attempt"] || String((known && known.attempt) || 1);
  const signature = el("span", { class: "state" }, "checking signature…");
  const answered = el("span", { class: "quiet" });
  const details = el("details", {}, el("summary", {}, `Headers and body (${count(new TextEncoder().encode(body).length, "byte")})`));
  // A body may have many megabytes, so it is shown only when it is opened.
  details.addEventListener("toggle", () => details.children.length > 1 || details.append(...wholeOf(headers, body)));
  const element = el(
    "li",
    { class: "delivery" },
    el(
      "div",
      { class: "row" },
      el("strong", {}, known ? known.name : headers["webhook-id"] || `Delivery ${number}`),
      el("span", { class: `state ${attempt === "1" ? "" : "retrying"}` }, `attempt ${attempt}`),
      signature,
      answered,
      moment(new Date().toISOString()),
    ),
    known ? el("p", {}, el("code", { class: "data" }, shortened(known.data, 200))) : null,
    details,
  );
  return {
    element,
    answer: (text) => answered.replaceChildren(text),
    signature: (right) => {
      signature.className = `state ${right === null ? "" : right ? "delivered" : "parked"}`;
      signature.textContent = right === null ? "signature not checked" : right ? "✓ signature valid" : "✗ signature wrong";
      if (right === null) signature.title = "The browser can check signatures over https and on localhost, for members who may read the signing secret.";
    },
  };
}

function wholeOf(headers, body) {
  const named = Object.entries(headers).map(([name, value]) => [name, el("code", {}, value)]);
  return [facts(named), codeBlock(shortened(indented(body) || body, BODY_CHARS_MAX), "Body")];
}

/** Return the message in a body, or the messages of a batch: {name, data, attempt}; null if the body has another form. */
function messageOf(body) {
  try {
    const whole = JSON.parse(body);
    if (!Array.isArray(whole)) return messageIn(whole, null);
    const each = whole.map((one) => messageIn(one.body, one.attempt));
    return {
      name: `Batch of ${count(each.length, "message")}`,
      data: each.map(({ name, data }) => `${name}: ${shortened(data, 40)}`).join("\n"),
      attempt: Math.max(...each.map(({ attempt }) => attempt)),
    };
  } catch {
    return null;
  }
}

function messageIn({ message: { name, data } }, attempt) {
  return { name: String(name), data: String(data), attempt };
}

/** Return whether one of the signatures is right (Standard Webhooks: HMAC-SHA256 of id.timestamp.body). */
async function isSigned({ headers, body }, secret) {
  const bytes = (base64) => Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const hmac = { name: "HMAC", hash: "SHA-256" };
  const key = await crypto.subtle.importKey("raw", bytes(secret.replace(/^whsec_/, "")), hmac, false, ["verify"]);
  const signed = new TextEncoder().encode(`${headers["webhook-id"]}.${headers["webhook-timestamp"]}.${body}`);
  for (const one of (headers["webhook-signature"] || "").split(" ")) {
    if (one.startsWith("v1,") && (await crypto.subtle.verify("HMAC", key, bytes(one.slice(3)), signed))) return true;
  }
  return false;
}
