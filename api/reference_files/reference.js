// The API reference: all operations of the OpenAPI document, with search, samples, schemas and "Try it".
//
// For: showing the document. Not for: its content (api/openapi.py), schemas (schemas.js), sending requests (try.js).

import { codeBlock, el, tabs } from "../console/dom.js";
import { fieldNames, fieldsOf, parametersOf, prose } from "./schemas.js";
import { tryIt } from "./try.js";

const SERVER = "https://[server]"; // stands for this server's URL in the document
const METHODS = ["get", "put", "post", "delete"];
const main = document.getElementById("reference");
const search = document.getElementById("search");
const entries = [];
const languages = []; // the tabs of all samples

async function start() {
  const answer = await fetch("docs/reference.json");
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "");
  const spec = JSON.parse((await answer.text()).replaceAll(SERVER, base));
  const groups = new Map(spec.tags.map((tag) => [tag.name, { about: tag.description, operations: [] }]));
  for (const [path, methods] of Object.entries(spec.paths)) {
    for (const method of METHODS.filter((name) => methods[name])) {
      groups.get(methods[method].tags[0]).operations.push({ method, path, ...methods[method] });
    }
  }
  const hooks = Object.entries(spec.webhooks).flatMap(([name, methods]) =>
    METHODS.filter((method) => methods[method]).map((method) => ({ method, path: name, operationId: `webhook-${name}`, hook: true, ...methods[method] })),
  );
  groups.set("webhooks", { about: "The requests that Everput sends to your listener.", operations: hooks });
  const sections = [...groups].filter(([, { operations }]) => operations.length);
  document.getElementById("operations").replaceChildren(...sections.map(([name, { operations }]) => navigation(name, operations, spec)));
  main.replaceChildren(
    el("h1", {}, "API reference"),
    el("div", {}, ...prose(spec.info.description)),
    el("p", {}, "Each kind of error has a page: ", el("a", { href: "problems" }, "problem types"), ". Base URL: ", el("code", {}, base)),
    ...authentication(spec),
    ...sections.flatMap(([name, { about, operations }]) => [
      el("h2", { class: "group" }, name),
      about ? el("p", { class: "quiet" }, about) : null,
      ...operations.map((one) => section(one, spec)),
    ]).filter(Boolean),
  );
  watch();
  if (location.hash) goTo(location.hash.slice(1));
}

function authentication(spec) {
  const { key, session } = spec.components.securitySchemes;
  return [
    el("h2", { class: "group" }, "authentication"),
    el("h3", {}, "API key, for programs"),
    ...prose(key.description),
    el("h3", {}, "Session, for people"),
    ...prose(session.description),
  ];
}

function badge(method) {
  return el("span", { class: `state method ${method}` }, method.toUpperCase());
}

function navigation(name, operations, spec) {
  const items = operations.map((one) => {
    const anchor = el("a", { href: `#${one.operationId}` }, badge(one.method), el("span", {}, one.summary));
    const item = el("li", {}, anchor);
    const names = [...(one.parameters || []).map((parameter) => parameter.name), one.operationId];
    const { body, content } = contentsOf(one);
    const fields = [body, content].flatMap((part) => fieldNames(part && part.schema, spec)).join(" ").toLowerCase();
    const text = `${one.method} ${one.path} ${one.summary} ${names.join(" ")} ${one.description}`.toLowerCase();
    entries.push({ id: one.operationId, anchor, item, text, fields });
    return item;
  });
  const list = el("section", {}, el("h2", {}, name), el("ul", {}, items));
  for (const entry of entries.slice(-items.length)) entry.group = list;
  return list;
}

/** Return the content of an operation's request body and of its answer 200; undefined without one. */
function contentsOf(one) {
  const done = one.responses["200"];
  return {
    body: one.requestBody && one.requestBody.content["application/json"],
    content: done && Object.values(done.content || {})[0],
  };
}

function section(one, spec) {
  const { body, content } = contentsOf(one);
  const samples = one["x-codeSamples"] || [];
  return el(
    "section",
    { class: "operation", id: one.operationId, tabindex: "-1", "aria-labelledby": `${one.operationId}-title` },
    el(
      "div",
      {},
      el("h3", { id: `${one.operationId}-title` }, one.summary),
      el("p", { class: "path" }, badge(one.method), " ", el("code", {}, one.path)),
      ...prose(one.description),
      one.hook ? null : el("p", { class: "quiet" }, whoMay(one.security)),
      ...parametersOf(one.parameters || [], spec),
      ...(body ? [el("h4", {}, "Request body"), fieldsOf(body.schema, spec)] : []),
      ...(content && content.schema && Object.keys(content.schema).length ? [el("h4", {}, "Answer 200"), fieldsOf(content.schema, spec)] : []),
      el("h4", {}, "Other answers"),
      el("p", {}, ...others(one.responses)),
    ),
    el(
      "div",
      { class: "samples" },
      samples.length ? tabs(`Samples of: ${one.summary}`, samples.map(({ label, source }) => [label, codeBlock(source, `${label} sample of: ${one.summary}`)]), languages) : null,
      one.hook ? null : tryIt(one, body),
    ),
  );
}

function whoMay(security) {
  const names = new Set((security || []).flatMap((one) => Object.keys(one)));
  if (!names.size) return "No authentication.";
  if (!names.has("key")) return "With a session.";
  return "With an API key, or a session.";
}

function others(responses) {
  const found = Object.entries(responses).filter(([status]) => status !== "200");
  return found.flatMap(([status, { description }], index) => [index ? ", " : "", el("code", {}, status), ` ${description.replace(/\.$/, "")}`]);
}

/** Return the words in the search field. */
function searched() {
  return search.value.toLowerCase().split(/\s+/).filter(Boolean);
}

function filter() {
  const words = searched();
  let found = 0;
  for (const { item, text, fields } of entries) {
    item.hidden = !words.every((word) => text.includes(word) || fields.includes(word));
    found += item.hidden ? 0 : 1;
  }
  for (const { group } of entries) group.hidden = ![...group.querySelectorAll("li")].some((item) => !item.hidden);
  document.getElementById("found").textContent = words.length ? `${found} operations found` : "";
}

function goTo(id) {
  const target = document.getElementById(id);
  if (!target) return;
  target.scrollIntoView();
  target.focus({ preventScroll: true });
}

/** Mark the operation at the top of the window in the navigation. */
function watch() {
  const visible = new Set();
  const observer = new IntersectionObserver((seen) => {
    for (const { target, isIntersecting } of seen) visible[isIntersecting ? "add" : "delete"](target.id);
    const now = entries.find(({ id }) => visible.has(id));
    for (const { id, anchor } of entries) {
      if (now && id === now.id) anchor.setAttribute("aria-current", "location");
      else anchor.removeAttribute("aria-current");
    }
  }, { rootMargin: "-10% 0px -70% 0px" });
  for (const one of document.querySelectorAll(".operation")) observer.observe(one);
}

search.addEventListener("input", filter);
search.form.addEventListener("submit", (event) => {
  event.preventDefault();
  const shown = entries.filter(({ item }) => !item.hidden);
  // An operation with these words in its name or description comes before those that only have such a field.
  const first = shown.find(({ text }) => searched().every((word) => text.includes(word))) || shown[0];
  if (first) location.hash = first.id;
});
window.addEventListener("hashchange", () => goTo(location.hash.slice(1)));
document.addEventListener("keydown", (event) => {
  const control = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey;
  const slash = event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && !event.target.closest("input, textarea, select");
  if (!slash && !(control && event.key.toLowerCase() === "k")) return;
  event.preventDefault();
  search.focus();
  search.select();
});
start().catch((error) => main.replaceChildren(el("p", { class: "alert" }, `The reference could not be loaded. ${error.message}`)));
