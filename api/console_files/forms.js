// Forms: fields with labels and hints, and each problem shown beside its field.
//
// For: creating and reading a form. Not for: sending its values (the views).

import { whyNot } from "./api.js";
import { button, el } from "./dom.js";
import { problemWords } from "./words.js";

let number = 0;

/**
 * Create a form. fields: {name, label, type?, value?, hint?, required?, options?, …attributes of the input}.
 * type: an input's type, or textarea, select, choices (several of the options), moment.
 * more: the label of the section with the advanced fields; moreOpen: whether it starts open.
 * onSubmit: called with the values; its errors are shown. others: further buttons, [text, function of the values].
 * needs: the operation that it uses; without the role for it, there is only a sentence that says why not.
 */
export function form({
  fields,
  submit,
  onSubmit,
  others = [],
  cancel,
  inline = false,
  more = "More settings",
  moreOpen = false,
  needs,
}) {
  const reason = needs ? whyNot(needs) : "";
  if (reason) return el("p", { class: "quiet" }, reason);
  const inputs = new Map();
  const alert = el("p", { class: "alert", role: "alert", hidden: true });
  const box = el("form", { class: inline ? "inline" : "", novalidate: false });
  const advanced = el("details", { class: "more" }, el("summary", {}, more));
  for (const field of fields) {
    const made = row(field);
    inputs.set(field.name, { ...made, field });
    (field.advanced ? advanced : box).append(made.element);
  }
  if (fields.some((field) => field.advanced)) box.append(advanced);
  advanced.open = moreOpen;
  box.addEventListener("invalid", (event) => (advanced.open = advanced.open || advanced.contains(event.target)), true);
  const buttons = el("div", { class: "row" }, el("button", { type: "submit", class: "primary" }, submit));
  const carryOut = async (act) => {
    clear(inputs, alert);
    if (!box.reportValidity()) return;
    for (const one of buttons.children) one.disabled = true;
    try {
      await act(values(inputs));
    } catch (error) {
      if (error.name !== "AbortError") show(error, inputs, alert);
    } finally {
      for (const one of buttons.children) one.disabled = false;
    }
  };
  for (const [text, act] of others) buttons.append(button(text, () => carryOut(act)));
  if (cancel) buttons.append(button("Cancel", () => cancel()));
  box.append(alert, buttons);
  box.addEventListener("submit", (event) => {
    event.preventDefault();
    carryOut(onSubmit);
  });
  return box;
}

function row({ name, label, type = "text", value = "", hint, options, advanced, ...attributes }) {
  const id = `field-${(number += 1)}`;
  const error = el("span", { class: "error", id: `${id}-error`, hidden: true });
  const described = hint ? `${id}-hint ${id}-error` : `${id}-error`;
  const common = { id, name, "aria-describedby": described, ...attributes };
  let input;
  let group = null;
  if (type === "textarea") input = el("textarea", { rows: 4, spellcheck: "false", ...common });
  else if (type === "select") {
    input = el(
      "select",
      common,
      options.map(([key, text]) => el("option", { value: key, selected: key === value }, text)),
    );
  } else if (type === "choices") {
    group = options.map(([key, text]) =>
      el(
        "label",
        { class: "choice" },
        el("input", { type: "checkbox", value: key, checked: value.includes(key) }),
        text,
      ),
    );
    input = el("div", { id, class: "choices" }, group);
  } else if (type === "moment") input = el("input", { type: "datetime-local", step: "1", ...common });
  else input = el("input", { type, autocomplete: "off", ...common });
  if (type !== "select" && type !== "choices") input.value = value;
  const told = hint ? el("span", { class: "hint", id: `${id}-hint` }, hint) : null;
  const element =
    type === "choices"
      ? el("fieldset", { class: "field" }, el("legend", {}, label), input, told, error)
      : el("div", { class: "field" }, el("label", { for: id }, label), input, told, error);
  return { element, input, error, type };
}

/** Return the values by name: text; an array for choices; RFC 3339 or "" for a moment. */
function values(inputs) {
  const found = {};
  for (const [name, { input, type }] of inputs) {
    if (type === "choices") found[name] = [...input.querySelectorAll("input:checked")].map((one) => one.value);
    else if (type === "moment") found[name] = input.value ? new Date(input.value).toISOString() : "";
    else found[name] = input.value;
  }
  return found;
}

function clear(inputs, alert) {
  alert.hidden = true;
  for (const { input, error } of inputs.values()) {
    error.hidden = true;
    input.removeAttribute("aria-invalid");
  }
}

function show(problem, inputs, alert) {
  const elsewhere = [];
  let first = null;
  for (const one of problem.errors || []) {
    const steps = (one.pointer || "").split("/").slice(1);
    const found = inputs.get(steps.join(".")) || inputs.get(steps[0]); // such as batch.wait_ms
    if (!found) {
      elsewhere.push(one);
      continue;
    }
    found.error.textContent = one.detail;
    found.error.hidden = false;
    found.input.setAttribute("aria-invalid", "true");
    for (let up = found.input.parentElement; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    first = first || found.input;
  }
  if (first) first.focus();
  if (!first || elsewhere.length) {
    alert.textContent = problemWords(first ? { message: "", errors: elsewhere } : problem);
    alert.hidden = false;
  }
}
