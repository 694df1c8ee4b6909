// Charts over time, with axes and a legend, drawn by uPlot. Each chart has its numbers in a table, too.
//
// For: drawing. Not for: loading the numbers (history.js, overview.js). Colors are variables and classes in console.css.

import { el, redraw, table } from "./dom.js";

const HEIGHT = 190;
const STEPS = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat();

/**
 * Create a chart over time: {element, show}. show(data) draws it, again and again.
 * data: {times, stepS, series, unit, note}. times: in seconds. unit: of the values, beside their axis. series: [{label, color, values, area}]; color: a variable of
 * console.css; null: not known; area: fill the area below the line. note: a sentence below the legend, or empty.
 * stacked: the values of a time add up. format: makes text of a value. rest: what the legend shows of all values while
 * nothing is hovered.
 */
export function timeChart({ title, stacked = false, format = plain, rest = total, signal }) {
  const legend = el("ul", { class: "legend" });
  const when = el("p", { class: "quiet when" });
  const plot = el("div", { class: "plot", role: "img" });
  const cells = el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": `${title}, as a table` });
  const more = el("details", { class: "numbers", ontoggle: () => fill() }, el("summary", {}, "Show as a table"), cells);
  const element = el("figure", { class: "panel over-time" }, el("figcaption", {}, el("h2", {}, title)), legend, when, plot, more);
  let shown = null;
  let chart = null;
  let made = "";

  function show(data) {
    shown = data;
    plot.setAttribute("aria-label", spoken(title, data, format, rest));
    fill();
    draw();
  }

  function draw() {
    if (!shown || !plot.clientWidth) return;
    const names = [shown.unit, ...shown.series.map((one) => one.label)].join();
    if (chart && made === names) chart.setData(heights());
    else {
      if (chart) chart.destroy();
      made = names;
      chart = new window.uPlot(options(), heights(), plot);
    }
    point(chart.cursor.idx);
  }

  /** Return the data as uPlot draws it. Stacked series are drawn from the highest on, so that each covers its own part. */
  function heights() {
    if (!stacked) return [shown.times, ...shown.series.map((one) => one.values)];
    const sums = shown.times.map(() => 0);
    const added = shown.series.map((one) => one.values.map((value, index) => (sums[index] += value || 0)));
    return [shown.times, ...added.reverse()];
  }

  function options() {
    const axis = { stroke: () => color("soft"), font: "12px system-ui, sans-serif", ticks: { show: false } };
    const grid = { stroke: () => color("line"), width: 1 };
    const drawn = stacked ? [...shown.series].reverse() : shown.series;
    return {
      width: plot.clientWidth,
      height: HEIGHT,
      padding: [8, 30, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "time" } },
      scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, grid: { show: false }, size: 30, space: 70, values: (_, ticks) => ticks.map((one) => clock(one, shown.stepS)) },
        { ...axis, grid, size: 58, incrs: STEPS, values: (_, ticks) => ticks.map(format), label: shown.unit, labelSize: 20, labelFont: axis.font },
      ],
      series: [{}, ...drawn.map((one) => (stacked ? bar(one.color) : stroke(one)))],
      hooks: { setCursor: [(now) => point(now.cursor.idx)] },
    };
  }

  /** Return the time of a step, and whether the step is not over yet. */
  function pointWords(index) {
    const over = (shown.times[index] + shown.stepS) * 1000 <= Date.now();
    return timeWords(shown.times[index], shown.stepS) + (over ? "" : ", so far");
  }

  /** Show the values of one time in the legend; null: those of all times together. */
  function point(index) {
    const at = index === null || index === undefined || index >= shown.times.length ? null : index;
    when.textContent = at === null ? shown.note : pointWords(at);
    redraw(
      legend,
      shown.series.map((one) =>
        el(
          "li",
          {},
          el("span", { class: `swatch ${one.color}` }),
          `${one.label} `,
          el("strong", {}, text(at === null ? rest(one.values, shown.series) : one.values[at], format)),
        ),
      ),
    );
  }

  function fill() {
    if (!more.open || !shown) return;
    const rows = shown.times
      .map((_, index) => [pointWords(index), ...shown.series.map((one) => text(one.values[index], format))])
      .reverse();
    redraw(cells, table(title, ["Time", ...shown.series.map((one) => one.label)], rows, "No numbers yet."));
  }

  const observer = new ResizeObserver(() => {
    if (chart) chart.setSize({ width: plot.clientWidth, height: HEIGHT });
    else draw();
  });
  const recolor = () => chart && chart.redraw();
  observer.observe(plot);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor, { signal });
  signal.addEventListener("abort", () => {
    observer.disconnect();
    if (chart) chart.destroy();
  });
  return { element, show };
}

function stroke({ color: name, area = false }) {
  const fill = area ? { fill: () => `${color(name)}30` } : {};
  return { stroke: () => color(name), width: 2, points: { size: 5 }, ...fill };
}

function bar(name) {
  const paint = () => color(name);
  return { stroke: paint, fill: paint, width: 0, paths: window.uPlot.paths.bars({ size: [0.8, 60], align: 1 }), points: { show: false } };
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
}

function clock(seconds, stepS) {
  const words = stepS < 3600 ? { hour: "2-digit", minute: "2-digit" } : { month: "short", day: "numeric" };
  return new Date(seconds * 1000).toLocaleString(undefined, words);
}

function timeWords(seconds, stepS) {
  const words = { hour: "2-digit", minute: "2-digit", ...(stepS < 900 ? {} : { month: "short", day: "numeric" }) };
  return new Date(seconds * 1000).toLocaleString(undefined, words);
}

function plain(value) {
  return value.toLocaleString("en");
}

function text(value, format) {
  return value === null || value === undefined ? "–" : format(value);
}

/** Return the sum of the values of all times at which every series is known, so that the sums can be compared. */
function total(values, series) {
  const known = values.filter((_, index) => series.every((one) => one.values[index] !== null));
  return known.reduce((sum, value) => sum + value, 0);
}

/** Return the last known value; null if there is none. */
export function last(values) {
  return values.findLast((value) => value !== null) ?? null;
}

function spoken(title, { series }, format, rest) {
  return `${title}: ${series.map((one) => `${one.label} ${text(rest(one.values, series), format)}`).join(", ")}`;
}
