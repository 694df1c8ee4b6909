// JSON Schemas and descriptions of the OpenAPI document as elements.
//
// For: fields with their types, limits and nested fields, which are created when they are opened; paragraphs, lists and code
// in descriptions. Not for: the rest of an operation (reference.js).

import { el } from "../console/dom.js";

/** Return the schema that a reference leads to. */
function resolved(schema, spec) {
  return schema.$ref ? { ...spec.components.schemas[schema.$ref.split("/").pop()], ...(schema.description ? { description: schema.description } : {}) } : schema;
}

/** Return a schema's type in words, such as “array of strings or null”. */
export function typeWords(schema, spec) {
  const one = resolved(schema, spec);
  if (one.anyOf) return [...new Set(one.anyOf.map((part) => typeWords(part, spec)))].join(" or ");
  if (one.enum) return one.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (one.type === "array") return `array of ${one.items ? typeWords(one.items, spec) : "values"}`;
  if (one.type === "object" && one.additionalProperties && one.additionalProperties !== true && !one.properties) return `object of ${typeWords(one.additionalProperties, spec)}`;
  return one.type ? `${one.type}${one.format ? ` (${one.format})` : ""}` : "any";
}

/** Return a schema's limits in words. */
function limits(schema) {
  const parts = (schema.anyOf || [schema]).map((one) => [
    one.minimum !== undefined ? `at least ${one.minimum}` : "",
    one.maximum !== undefined ? `at most ${one.maximum}` : "",
    one.minLength ? `at least ${one.minLength} characters` : "",
    one.maxLength !== undefined ? `at most ${one.maxLength} characters` : "",
    one.minItems ? `at least ${one.minItems} items` : "",
    one.maxItems !== undefined ? `at most ${one.maxItems} items` : "",
  ]);
  const preset = schema.default !== undefined && schema.default !== null ? [`default ${JSON.stringify(schema.default)}`] : [];
  return [...parts.flat().filter(Boolean), ...preset].join(", ");
}

/** Return the schema of an object within a schema: itself, that of an array's items, or one of several. */
function inner(schema, spec) {
  const one = resolved(schema, spec);
  if (one.properties) return one;
  for (const part of [one.items, ...(one.anyOf || []), one.additionalProperties]) {
    const found = part && typeof part === "object" ? inner(part, spec) : null;
    if (found) return found;
  }
  return null;
}

/** Return the names of all fields of a body, at every level. seen: the references that were followed. */
export function fieldNames(schema, spec, seen = new Set()) {
  if (!schema || typeof schema !== "object" || seen.has(schema.$ref)) return [];
  if (schema.$ref) seen.add(schema.$ref);
  const { properties = {}, items, additionalProperties, anyOf = [] } = resolved(schema, spec);
  const parts = [...Object.values(properties), items, additionalProperties, ...anyOf];
  return [...Object.keys(properties), ...parts.flatMap((part) => fieldNames(part, spec, seen))];
}

/** Create the list of an object's fields. */
export function fieldsOf(schema, spec) {
  const object = inner(schema, spec);
  if (!object) return el("p", { class: "quiet" }, typeWords(schema, spec));
  const required = new Set(object.required || []);
  const byNeed = ([one], [other]) => required.has(other) - required.has(one); // required fields first
  return el("ul", { class: "fields" }, Object.entries(object.properties).sort(byNeed).map(([name, one]) => field(name, one, required.has(name), spec)));
}

function field(name, schema, required, spec) {
  const within = inner(schema, spec);
  const more = within && Object.keys(within.properties).length ? el("details", {}, el("summary", {}, `Fields of ${name}`)) : null;
  if (more) more.addEventListener("toggle", () => more.children.length > 1 || more.append(fieldsOf(within, spec)));
  const text = resolved(schema, spec).description;
  const bounds = limits(resolved(schema, spec));
  return el(
    "li",
    {},
    el("code", {}, name),
    " ",
    el("span", { class: "kind" }, `${typeWords(schema, spec)}${bounds ? `, ${bounds}` : ""}`),
    required ? el("span", { class: "required" }, " required") : null,
    ...(text ? prose(text) : []),
    more,
  );
}

/** Create the lists of an operation's parameters, by their place. */
export function parametersOf(parameters, spec) {
  const places = [
    ["path", "Path parameters"],
    ["query", "Query parameters"],
    ["header", "Headers"],
  ];
  return places.flatMap(([place, title]) => {
    const found = parameters.filter((one) => one.in === place);
    if (!found.length) return [];
    const items = found.map((one) => field(one.name, { ...one.schema, description: one.description }, one.required, spec));
    return [el("h4", {}, title), el("ul", { class: "fields" }, items)];
  });
}

/** Create the paragraphs and lists of a description; words between backticks are code. */
export function prose(text) {
  const inline = (line) => line.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));
  return text.split("\n\n").map((block) => {
    const lines = block.split("\n");
    if (lines.every((line) => line.startsWith("- "))) return el("ul", {}, lines.map((line) => el("li", {}, ...inline(line.slice(2)))));
    return el("p", {}, ...inline(block));
  });
}
