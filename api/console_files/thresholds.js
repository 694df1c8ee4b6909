// The thresholds of a queue's or a listener's alerts: their fields in forms, and their words.

import { count, duration } from "./words.js";

const ALERTS_QUEUE = "everput.alerts";

// [name, label, hint, default]; a test compares the names and defaults with the API's.
const THRESHOLDS = [
  ["lag_messages", "Alert at a backlog of, messages", "Messages that wait for the listener.", 10000],
  ["lag_s", "Alert at an oldest message of, s", "Age of the oldest message that waits for the listener.", 900],
  ["parked", "Alert at parked deliveries", "Deliveries to the listener that are parked.", 1],
  ["down_s", "Alert when down for, s", "How long the listener is down.", 60],
  ["failing_s", "Alert when failing for, s", "How long the listener is failing.", 300],
];
const WORDS = {
  lag_messages: (value) => `${count(value, "message")} in the backlog`,
  lag_s: (value) => `an oldest message of ${duration(value)}`,
  parked: (value) => count(value, "parked delivery", "parked deliveries"),
  down_s: (value) => `down for ${duration(value)}`,
  failing_s: (value) => `failing for ${duration(value)}`,
};

/**
 * Return the form's fields for the thresholds of a queue or, with `queue`, of one of its listeners.
 * Listeners of everput.alerts cause no alerts, so there are none for them.
 */
export function thresholdFields({ name = "", alerts: was = {} }, queue = null) {
  if ((queue ? queue.name : name) === ALERTS_QUEUE) return [];
  const inherited = (queue && queue.alerts) || {};
  return THRESHOLDS.map(([key, label, hint, usual]) => {
    const rest = inherited[key] === undefined ? `the default, ${usual.toLocaleString("en")}` : `the queue's, ${inherited[key].toLocaleString("en")}`;
    return {
      name: `alerts.${key}`,
      label,
      hint: `${hint} Leave empty for ${rest}. 0 turns the alert off.`,
      advanced: true,
      type: "number",
      min: 0,
      value: was[key] ?? "",
    };
  });
}

/** Return the thresholds that a form's values set. */
function thresholdsOf(given) {
  const filled = THRESHOLDS.filter(([key]) => given[`alerts.${key}`]);
  return Object.fromEntries(filled.map(([key]) => [key, Number(given[`alerts.${key}`])]));
}

/** Return an object with the field `alerts` of the body; empty if the thresholds are as they were. was: the queue or listener. */
export function changedThresholds(given, { alerts: was = {} }) {
  if (given["alerts.parked"] === undefined) return {}; // the form has no such fields
  const alerts = thresholdsOf(given);
  return THRESHOLDS.every(([key]) => alerts[key] === was[key]) ? {} : { alerts };
}

/** Return in words when Everput alerts about a listener of a queue. */
export function thresholdWords(listener, queue) {
  if (queue.name === ALERTS_QUEUE) return "never";
  const effective = THRESHOLDS.map(([key, , , usual]) => [key, { ...queue.alerts, ...listener.alerts }[key] ?? usual]);
  return effective.filter(([, value]) => value !== 0).map(([key, value]) => WORDS[key](value)).join(", ") || "never";
}
