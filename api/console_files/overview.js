// The overview of the organization: what needs attention, and a time range of all queues together.

import { ask, session } from "./api.js";
import { age, el, link, panel, redraw, state, table } from "./dom.js";
import { chartsOf, countedOnly, isByMinute, rangeChoice, rangeQuery } from "./history.js";
import { poll } from "./live.js";
import { count, milliseconds, recentFailures } from "./words.js";

const LOOK_MS = 10_000;
const COLUMNS = ["Listener", "Queue", "State", "Recent failures", "Backlog", "Retrying", "Parked", "Last failure"];

export async function showOverview({ main, query, signal }) {
  const told = el("p", { class: "alert", hidden: true });
  const figures = el("dl", { class: "figures" });
  const attention = el("div");
  const charts = chartsOf({ backlog: true, signal });
  const sooner = new EventTarget();
  const range = rangeChoice(query, () => sooner.dispatchEvent(new Event("look")));
  const span = el("h2", {}, range.now().name);

  async function look() {
    let chosen;
    do {
      chosen = range.now();
      const { body } = await ask("getOverview", { query: rangeQuery(chosen), signal });
      draw(chosen, body);
    } while (chosen !== range.now());
  }

  function draw(chosen, body) {
    const { instead } = countedOnly(body.statistics.counted_at);
    const points = isByMinute(chosen) ? body.statistics.points.map(instead) : body.statistics.points;
    const statistics = { ...body.statistics, points };
    span.textContent = chosen.name;
    redraw(figures, figuresOf({ ...body, statistics }));
    redraw(attention, attentionOf(body));
    charts.show(statistics);
  }

  main.replaceChildren(
    el("div", { class: "title" }, el("h1", { tabindex: "-1" }, `Overview of ${session.organization.name}`), range.element),
    told,
    el("section", { class: "panel" }, span, figures),
    panel("Needs attention", attention),
    charts.element,
  );
  await look();
  poll(signal, LOOK_MS, look, told, sooner);
}

function figuresOf({ statistics, queues, listeners }) {
  const { points } = statistics;
  const sum = (name) => points.reduce((total, one) => total + one[name], 0);
  const [put, delivered, failed] = ["put", "delivered", "failed"].map(sum);
  const waiting = points[points.length - 1].backlog;
  const all = Object.values(listeners).reduce((total, one) => total + one, 0);
  const figure = (name, value, ...more) =>
    el("div", {}, el("dt", {}, name), el("dd", {}, el("strong", {}, value), more.length ? el("span", { class: "quiet" }, ...more) : null));
  return [
    figure("Put", number(put), "messages"),
    figure("Delivered", number(delivered), "deliveries"),
    figure("Success rate", shareOf(delivered, failed), `${count(failed, "attempt")} failed`),
    figure("Time to delivery", latencyOf(statistics), "95 of 100 at most"),
    figure("Backlog", waiting === null ? "–" : number(waiting), "deliveries wait"),
    figure("Queues", number(queues), all ? count(all, "listener") : ""),
  ];
}

function number(value) {
  return value.toLocaleString("en");
}

/** Return the share of successful attempts. It is 100 % only if none failed. */
function shareOf(delivered, failed) {
  if (delivered + failed === 0) return "–";
  return `${Math.floor((1000 * delivered) / (delivered + failed)) / 10} %`;
}

/** Return the time within which 95 of 100 deliveries of all points arrived, from the sums of their histograms. */
function latencyOf({ points, latency_bounds_ms: bounds }) {
  const steps = Array(bounds.length + 1).fill(0);
  for (const { latency } of points) if (latency) latency.steps.forEach((number, step) => (steps[step] += number));
  const all = steps.reduce((sum, one) => sum + one, 0);
  let seen = 0;
  const at = steps.findIndex((number) => (seen += number) >= 0.95 * all);
  if (all === 0) return "–";
  return at < bounds.length ? milliseconds(bounds[at]) : `over ${milliseconds(bounds[bounds.length - 1])}`;
}

function attentionOf({ listeners, attention, queues }) {
  if (!queues) return [el("p", {}, "No queues yet. ", link(["queues"], "Create a queue"), " to start.")];
  const states = Object.entries(listeners).sort(([, one], [, other]) => other - one);
  const words = states.flatMap(([word, many]) => [state(word), ` × ${number(many)} `]);
  const rows = attention.map((one) => [
    link(["queues", one.queue.id, "listeners", one.id], one.name, { class: "name" }),
    link(["queues", one.queue.id], one.queue.name),
    state(one.health),
    recentFailures(one),
    one.lag === null ? "–" : number(one.lag),
    number(one.retrying),
    one.parked ? el("span", { class: "state parked" }, number(one.parked)) : "0",
    age(one.last_failure_at),
  ]);
  if (rows.length) return [el("p", {}, "Listeners: ", ...words), table("Listeners that need attention", COLUMNS, rows, "")];
  if (!states.length) return [el("p", { class: "quiet" }, "No listeners yet, or their state could not be read.")];
  return [el("p", {}, "Listeners: ", ...words), el("p", { class: "quiet" }, "No listener is down, failing or paused, and nothing is parked.")];
}
