// "Try it": sends a request of the reference to this server, and shows the answer.
//
// For: the form, the request, the answer. The API key is held only in this page's memory. The request carries no cookie, so
// it may do what the key may do, and nothing else.

import { button, codeBlock, el } from "../console/dom.js";

const CHARS_MAX = 200_000;
const WAIT_MS = 15_000;
let apiKey = "";
let number = 0;

/** Create the form for one operation; null for operations that need a session. It is filled when it is opened. */
export function tryIt(operation, body) {
  const security = operation.security || [];
  const withKey = security.some((one) => "key" in one);
  if (security.length && !withKey) return null;
  const box = el("details", { class: "try" }, el("summary", {}, "Try it"));
  box.addEventListener("toggle", () => {
    if (box.children.length === 1) box.append(formOf(operation, body, withKey));
    const key = box.querySelector("[name=api-key]");
    if (key) key.value = apiKey;
  });
  return box;
}

function formOf(operation, body, withKey) {
  const fields = [];
  const labelled = (label, input) => {
    input.id = `try-${(number += 1)}`;
    return el("div", { class: "field" }, el("label", { for: input.id }, label), input);
  };
  const key = el("input", { type: "password", name: "api-key", autocomplete: "off", value: apiKey, oninput: () => (apiKey = key.value) });
  const rows = withKey ? [labelled("API key (kept only in this page)", key)] : [];
  for (const one of operation.parameters || []) {
    const input = el("input", { autocomplete: "off", required: one.required });
    fields.push({ one, input });
    rows.push(labelled(`${one.name}${one.required ? "" : " (optional)"}`, input));
  }
  const text = el("textarea", { rows: 8, spellcheck: "false" });
  if (body) {
    text.value = JSON.stringify(body.example || {}, null, 2);
    rows.push(labelled("Request body", text));
  }
  const result = el("div", { role: "status" });
  const send = el("button", { type: "submit", class: "primary" }, "Send request");
  const form = el("form", {}, rows, el("div", { class: "row" }, send, button("Clear answer", () => result.replaceChildren())), result);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    result.replaceChildren(el("p", { class: "quiet" }, "Sending…"));
    const headers = withKey ? { "X-API-KEY": apiKey } : {};
    if (body) headers["Content-Type"] = "application/json";
    try {
      result.replaceChildren(...(await answerTo(operation, fields, headers, body ? text.value : undefined)));
    } catch (error) {
      result.replaceChildren(el("p", { class: "alert" }, `No answer: ${error.message}`));
    } finally {
      send.disabled = false;
    }
  });
  return form;
}

async function answerTo(operation, fields, headers, body) {
  const given = fields.filter(({ input }) => input.value !== "");
  const values = new Map(given.map(({ one, input }) => [one, input.value]));
  const path = operation.path.replace(/{(\w+)}/g, (_, name) => encodeURIComponent([...values].find(([one]) => one.in === "path" && one.name === name)[1]));
  const url = new URL(path.slice(1), document.baseURI);
  for (const [one, value] of values) {
    if (one.in === "query") url.searchParams.set(one.name, value);
    if (one.in === "header") headers[one.name] = value;
  }
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(new Error(`it took longer than ${WAIT_MS / 1000} s.`)), WAIT_MS);
  try {
    const begunMs = performance.now();
    const answer = await fetch(url, { method: operation.method.toUpperCase(), headers, body, credentials: "omit", cache: "no-store", signal: stop.signal });
    const text = await beginningOf(answer);
    const took = `${Math.round(performance.now() - begunMs)} ms`;
    const problem = answer.headers.get("content-type") === "application/problem+json" && text.match(/"type":"\/(problems\/[\w-]+)"/);
    return [
      el("p", {}, el("span", { class: `state ${answer.ok ? "delivered" : "parked"}` }, `${answer.status} ${answer.statusText}`.trim()), ` ${took}`),
      problem ? el("p", {}, "What this means: ", el("a", { href: problem[1] }, problem[1].split("/")[1])) : null,
      codeBlock(indentedJson(text), "Answer"),
    ].filter(Boolean);
  } finally {
    clearTimeout(timer);
  }
}

/** Read the beginning of an answer; an answer of the log, or a stream of events, may be long. */
async function beginningOf(answer) {
  if (!answer.body) return "";
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part; text.length < CHARS_MAX && !(part = await reader.read()).done; ) text += part.value;
  reader.cancel().catch(() => {});
  return text.length < CHARS_MAX ? text : `${text.slice(0, CHARS_MAX)}…`;
}

function indentedJson(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
