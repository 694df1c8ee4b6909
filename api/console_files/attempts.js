// A chart of a listener's attempts in the last minutes, counted from the log.
//
// For: reading each event of the log once, from the last cursor. Not for: drawing the chart (charts.js).

import { ask } from "./api.js";
import { bars } from "./charts.js";
import { el, redraw } from "./dom.js";
import { count } from "./words.js";

const BUCKETS = 40;
const EVENTS_AT_ONCE = 2000;

/** Create the chart: {element, look}. spanMs: the time it covers. */
export function attemptsPicture(listenerId, spanMs, signal) {
  const element = el("div", {}, el("p", { class: "quiet" }, "Loading…"));
  const width = spanMs / BUCKETS;
  const made = new Map(); // bucket number -> {good, bad}
  const from = new Date(Date.now() - spanMs).toISOString();
  let cursor = null;

  async function look() {
    const query = { type: "deliveries.settled,delivery.attempted", listener: listenerId, limit: EVENTS_AT_ONCE };
    const { body } = await ask("readLog", {
      query: { ...query, ...(cursor === null ? { from } : { from, cursor }) },
      signal,
    });
    let behind = false;
    for (const one of body) {
      if (one.event) for (const [atMs, good] of attemptsOf(one.event)) add(atMs, good);
      if (one.cursor) {
        cursor = one.cursor;
        behind = !one.complete;
      }
    }
    draw(behind);
  }

  function add(atMs, good) {
    const bucket = Math.floor(atMs / width);
    const known = made.get(bucket) || { good: 0, bad: 0 };
    known[good ? "good" : "bad"] += 1;
    made.set(bucket, known);
  }

  function draw(behind) {
    const last = Math.floor(Date.now() / width);
    for (const bucket of made.keys()) if (bucket <= last - BUCKETS) made.delete(bucket);
    const buckets = Array.from(
      { length: BUCKETS },
      (_, index) => made.get(last - BUCKETS + 1 + index) || { good: 0, bad: 0 },
    );
    const sum = (name) => buckets.reduce((total, one) => total + one[name], 0);
    redraw(
      element,
      el(
        "p",
        { class: "big" },
        count(sum("good"), "succeeded", "succeeded"),
        ", ",
        count(sum("bad"), "failed", "failed"),
        behind ? " – still loading" : "",
      ),
      bars(buckets, { what: "Attempts" }),
      el(
        "p",
        { class: "axis quiet" },
        el("span", {}, "10 minutes ago"),
        el("span", {}, "attempts"),
        el("span", {}, "now"),
      ),
    );
  }

  return { element, look };
}

/** Return [time in ms, whether it succeeded] for each attempt in an event. */
function attemptsOf(event) {
  if (event.type === "deliveries.settled") return event.rows.map(([, atMs]) => [atMs, true]);
  if (event.type === "delivery.attempted") return [[event.at_ms, event.outcome === "delivered"]];
  return [];
}
