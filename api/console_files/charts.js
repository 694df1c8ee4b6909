// Small charts, as SVG.
//
// For: a line over the last minutes, bars of successes and failures. Not for: loading the numbers (the views).
// Colors are classes in console.css. Each chart's title repeats its figures as text.

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function picture(width, height, title, name, ...children) {
  return svg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      class: `chart ${name}`,
      role: "img",
      "aria-label": title,
      preserveAspectRatio: "none",
    },
    svg("title", {}, document.createTextNode(title)),
    ...children,
  );
}

/** Draw a line. points: {at (ms), value}, oldest first. spanMs: the time it covers. */
export function line(points, { spanMs, what, small = false }) {
  const [width, height] = small ? [120, 24] : [600, 120];
  const now = Date.now();
  const top = Math.max(1, ...points.map((one) => one.value));
  const place = (one) => {
    const x = width * (1 - (now - one.at) / spanMs);
    const y = height - 2 - (height - 4) * (one.value / top);
    return `${Math.max(0, x).toFixed(1)},${y.toFixed(1)}`;
  };
  const shown = points.filter((one) => one.at >= now - spanMs);
  const last = shown.length ? shown[shown.length - 1].value : 0;
  const title = shown.length ? `${what}: now ${last}, at most ${top} in the last minutes` : `${what}: no data yet`;
  if (!shown.length) return picture(width, height, title, small ? "small" : "large");
  const places = [...shown, { at: now, value: last }].map(place);
  const [first] = places[0].split(",");
  return picture(
    width,
    height,
    title,
    small ? "small" : "large",
    svg("polygon", { class: "under", points: `${first},${height} ${places.join(" ")} ${width},${height}` }),
    svg("polyline", { class: "line", points: places.join(" "), "vector-effect": "non-scaling-stroke" }),
  );
}

/** Draw stacked bars. buckets: {good, bad}, oldest first. */
export function bars(buckets, { what }) {
  const [width, height] = [600, 120];
  const top = Math.max(1, ...buckets.map((one) => one.good + one.bad));
  const step = width / buckets.length;
  const all = buckets.flatMap(({ good, bad }, index) => {
    const x = index * step + step * 0.1;
    const goodHeight = (height - 2) * (good / top);
    const badHeight = (height - 2) * (bad / top);
    return [
      svg("rect", { class: "good", x, y: height - goodHeight, width: step * 0.8, height: goodHeight }),
      svg("rect", { class: "bad", x, y: height - goodHeight - badHeight, width: step * 0.8, height: badHeight }),
    ];
  });
  const sum = (name) => buckets.reduce((total, one) => total + one[name], 0);
  return picture(width, height, `${what}: ${sum("good")} succeeded, ${sum("bad")} failed`, "large", ...all);
}
