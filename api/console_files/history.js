// Charts of statistics: what was put, delivered, failed and parked, how long it took, and what waits.
//
// For: the choice of a time range, loading its statistics, counting the newest minutes from the log, the charts of a queue,
// a listener or the organization. Not for: drawing a chart (charts.js).

import { ask } from "./api.js";
import { last, timeChart } from "./charts.js";
import { el } from "./dom.js";
import { putQuery } from "./lists.js";
import { poll } from "./live.js";
import { duration, milliseconds } from "./words.js";

const MINUTE_MS = 60_000;
const DAY_MS = 24 * 60 * MINUTE_MS;
const LOOK_MS = 5000;
const COUNTED_MS = 15_000; // workers write the counts once a minute
const LIVE_MS = 3 * MINUTE_MS; // the newest minutes, which workers may not have counted yet
const EVENTS_AT_ONCE = 2000;
const ANSWERS = 5;
const UNKNOWN = { put: null, delivered: null, failed: null, failed_by: {}, parked: null, latency: null };
// Each range: its name in the address, its name on the page, its length, and the step of its statistics.
const RANGES = [
  { key: "1h", name: "Last hour", spanMs: 60 * MINUTE_MS, step: "1m" },
  { key: "24h", name: "Last 24 hours", spanMs: DAY_MS, step: "15m" },
  { key: "7d", name: "Last 7 days", spanMs: 7 * DAY_MS, step: "2h" },
  { key: "30d", name: "Last 30 days", spanMs: 30 * DAY_MS, step: "6h" },
];

/**
 * Create the choice of a time range, which is in the page's address: {element, now}. now() returns the chosen range.
 * changed(): called after each change.
 */
export function rangeChoice(query, changed) {
  const element = el(
    "select",
    {
      "aria-label": "Time range",
      onchange: () => {
        putQuery({ range: element.value === RANGES[0].key ? "" : element.value });
        changed();
      },
    },
    RANGES.map(({ key, name }) => el("option", { value: key, selected: key === query.get("range") }, name)),
  );
  return { element, now: () => RANGES.find(({ key }) => key === element.value) };
}

/** Return the query parameters of a range that ends now and begins with a whole minute. */
export function rangeQuery({ spanMs, step }) {
  return { from: new Date(Math.floor((Date.now() - spanMs) / MINUTE_MS + 1) * MINUTE_MS).toISOString(), step };
}

/** Return whether a range is so short that its newest points may not be counted yet. */
export function isByMinute({ step }) {
  return step === "1m";
}

/**
 * Create the charts of a queue or a listener and keep them up to date: an element.
 * operation: the one that returns the statistics. told: an element that shows why they are out of date.
 */
export function historyCharts({ operation, ids, query, signal, told }) {
  const charts = chartsOf({ backlog: ids.listener_id !== undefined, signal });
  const live = liveMinutes(ids, signal);
  const range = rangeChoice(query, () => refresh());
  let statistics = null;
  let counted = 0;

  async function look() {
    const chosen = range.now();
    if (Date.now() - counted >= COUNTED_MS) {
      statistics = (await ask(operation, { ids, query: rangeQuery(chosen), signal })).body.statistics;
      counted = Date.now();
    }
    if (!isByMinute(chosen)) {
      charts.show(statistics);
      return;
    }
    // The log may take longer to read than the statistics, so the charts do not wait for it.
    charts.show(statistics, live.began() ? live : countedOnly(statistics.counted_at));
    await live.look(statistics.counted_at);
    charts.show(statistics, live);
  }

  async function refresh() {
    counted = 0;
    sooner.dispatchEvent(new Event("look"));
  }
  const sooner = new EventTarget();
  poll(signal, LOOK_MS, look, told, sooner);
  return el("div", {}, el("div", { class: "row" }, range.element), charts.element);
}

/** Create the charts of statistics: {element, show}. */
export function chartsOf({ backlog, signal }) {
  const messages = timeChart({ title: "Messages", signal });
  const failures = timeChart({ title: "Failed attempts", stacked: true, signal });
  const latency = timeChart({ title: "Time from put to delivered", format: milliseconds, rest: last, signal });
  const waiting = timeChart({ title: "Backlog", rest: last, signal });
  const shown = [messages, failures, latency, ...(backlog ? [waiting] : [])];

  /** Draw statistics as the API returns them. live: changes the newest points, or null. */
  function show(statistics, live = null) {
    const points = live ? statistics.points.map((one) => live.instead(one)) : statistics.points;
    const times = points.map((one) => Date.parse(one.at) / 1000);
    const of = (label, color, value) => ({ label, color, values: points.map(value) });
    const drawn = (unit, note, ...series) => ({ times, stepS: statistics.step_s, unit, note, series });
    const step = statistics.step_s === 60 ? "minute" : duration(statistics.step_s);
    const per = `Per ${step}; the newest is not over yet.`;
    messages.show(
      drawn(
        `messages per ${step}`,
        [per, countedWords(statistics.counted_at)].filter(Boolean).join(" "),
        { ...of("Put", "accent", (one) => one.put), area: true },
        of("Delivered", "good", (one) => one.delivered),
        of("Parked", "bad", (one) => one.parked),
      ),
    );
    failures.show(drawn(`attempts per ${step}`, "By HTTP status or error.", ...failedBy(points, of)));
    const quantile = (name) => (one) => (one.latency ? one.latency[name] : null);
    latency.show(
      drawn(
        "time",
        "50, 95 and 99 of 100 deliveries took at most this long.",
        of("50 %", "c1", quantile("p50_ms")),
        of("95 %", "c2", quantile("p95_ms")),
        of("99 %", "c3", quantile("p99_ms")),
      ),
    );
    if (backlog) {
      waiting.show(drawn("messages", "Messages that waited at the end of the step.", of("Backlog", "accent", (one) => one.backlog)));
    }
  }
  return { element: el("div", { class: "charts" }, shown.map((one) => one.element)), show };
}

/** Return a series for each of the most frequent answers, and one for all others. */
function failedBy(points, of) {
  const sums = new Map();
  for (const { failed_by: failed } of points) {
    for (const [answer, number] of Object.entries(failed)) sums.set(answer, (sums.get(answer) || 0) + number);
  }
  const often = [...sums].sort(([, one], [, other]) => other - one).map(([answer]) => answer);
  const named = often.slice(0, ANSWERS).sort();
  const series = named.map((answer, index) => of(answer, `c${index + 1}`, (one) => one.failed_by[answer] || 0));
  const rest = often.slice(ANSWERS);
  if (rest.length) series.push(of("others", "soft", (one) => rest.reduce((sum, answer) => sum + (one.failed_by[answer] || 0), 0)));
  return series.length ? series : [of("Failed", "c1", (one) => one.failed)];
}

function countedWords(countedAt) {
  if (countedAt === null) return "No worker has counted anything in this time.";
  if (Date.now() - Date.parse(countedAt) < LIVE_MS) return "";
  return `Nothing was counted after ${new Date(countedAt).toLocaleString()}.`;
}

/** Return from which minute on the workers may not have counted everything yet, in ms. */
function uncountedMs(countedAt) {
  const minute = (ms) => Math.floor(ms / MINUTE_MS) * MINUTE_MS;
  return Math.max(minute(Date.now() - LIVE_MS), countedAt === null ? 0 : minute(Date.parse(countedAt)));
}

/** Return {instead}, which makes points of the statistics unknown that the workers may not have counted yet. */
export function countedOnly(countedAt) {
  const fromMs = uncountedMs(countedAt);
  return { instead: (point) => (Date.parse(point.at) < fromMs ? point : { ...point, ...UNKNOWN }) };
}

/**
 * Count a queue's or listener's attempts in the newest minutes from the log: {look, instead, began}.
 * look(countedAt) reads on. began() says whether it has. instead(point) returns a point of the statistics with these counts, if its minute is newer
 * than the statistics. Messages put are not counted from the log, because those events hold the messages' data.
 */
function liveMinutes(ids, signal) {
  const made = new Map(); // begin of a minute in ms -> counts
  let cursor = null;
  let complete = false;
  let fromMs = 0;
  let startMs = 0; // a cursor continues a request from this time

  async function look(countedAt) {
    const newFromMs = uncountedMs(countedAt);
    if (!complete) {
      // One read does not hold all events of a busy queue. Wait until the workers have counted another minute.
      if (newFromMs === fromMs) return;
      cursor = null;
      startMs = newFromMs;
      made.clear();
    }
    fromMs = newFromMs;
    const query = {
      type: "deliveries.settled,delivery.attempted",
      queue: ids.queue_id,
      listener: ids.listener_id,
      limit: EVENTS_AT_ONCE,
      from: new Date(startMs).toISOString(),
      cursor,
    };
    for (const one of (await ask("readLog", { query, signal })).body) {
      if (one.event) for (const attempt of attemptsOf(one.event)) add(attempt);
      if (one.cursor) ({ cursor, complete } = one);
    }
    for (const minute of made.keys()) if (minute < fromMs) made.delete(minute);
  }

  function add({ atMs, outcome, answer, waitedMs }) {
    const minute = Math.floor(atMs / MINUTE_MS) * MINUTE_MS;
    if (!made.has(minute)) made.set(minute, { delivered: 0, failed: {}, parked: 0, waited: [] });
    const counts = made.get(minute);
    if (outcome === "delivered") counts.delivered += 1;
    else counts.failed[answer] = (counts.failed[answer] || 0) + 1;
    if (outcome === "parked") counts.parked += 1;
    if (Number.isFinite(waitedMs)) counts.waited.push(waitedMs);
  }

  function instead(point) {
    const atMs = Date.parse(point.at);
    if (atMs < fromMs) return point;
    const counts = made.get(atMs) || { delivered: 0, failed: {}, parked: 0, waited: [] };
    if (!complete) return { ...point, ...UNKNOWN };
    const failed = Object.values(counts.failed).reduce((sum, one) => sum + one, 0);
    const live = { delivered: counts.delivered, failed, failed_by: counts.failed, parked: counts.parked };
    return { ...point, ...UNKNOWN, ...live, latency: latencyOf(counts.waited) };
  }
  return { look, instead, began: () => cursor !== null };
}

function latencyOf(waited) {
  if (!waited.length) return null;
  const sorted = [...waited].sort((one, other) => one - other);
  const at = (share) => sorted[Math.ceil(share * sorted.length) - 1];
  return { p50_ms: at(0.5), p95_ms: at(0.95), p99_ms: at(0.99) };
}

/** Return the attempts in an event of the log. */
function attemptsOf(event) {
  if (event.type === "deliveries.settled") {
    const waited = event.waited_ms || [];
    return event.rows.map(([, atMs], index) => ({ atMs, outcome: "delivered", waitedMs: waited[index] }));
  }
  if (event.type !== "delivery.attempted") return [];
  const answer = event.status === null ? event.error || "other" : String(event.status);
  return [{ atMs: event.at_ms, outcome: event.outcome, answer, waitedMs: event.waited_ms }];
}
