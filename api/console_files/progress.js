// The progress of work that takes a while: a bar, and in words how much is done, how fast, and how long the rest takes.

import { el } from "./dom.js";
import { count, duration } from "./words.js";

const SAMPLES = 12;

/** Create a bar with words. perS: what is done each second; null if it is not known. */
export function progressBar({ done, all, noun, perS, label }) {
  const part = all ? Math.min(1, done / all) : 1;
  const words = [`${done.toLocaleString("en")} of ${count(all, noun)} (${Math.floor(part * 100)} %)`];
  if (perS) {
    words.push(`${perS < 10 ? perS.toFixed(1) : Math.round(perS).toLocaleString("en")} per second`);
    if (done < all) words.push(`about ${duration(Math.ceil((all - done) / perS))} left`);
  }
  return el(
    "div",
    { class: "progress" },
    el("progress", { max: "1", value: String(part), "aria-label": label }),
    el("span", {}, words.join(" · ")),
  );
}

/** Return a function that takes what is done of the work with an ID by now, and returns how much is done each second. */
export function paces() {
  const known = new Map();
  return (id, done) => {
    const samples = known.get(id) || [];
    const atMs = performance.now();
    if (samples.length && done < samples[samples.length - 1].done) samples.length = 0; // it began again
    samples.push({ atMs, done });
    if (samples.length > SAMPLES) samples.shift();
    known.set(id, samples);
    const [first] = samples;
    return atMs - first.atMs < 1000 || done === first.done ? null : ((done - first.done) * 1000) / (atMs - first.atMs);
  };
}
