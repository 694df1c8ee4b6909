// Polling while a view is open.
//
// For: polling that stops with its view, pauses while the tab is hidden and uses at most half of the time. Not for: the
// requests themselves (the views).

import { ask } from "./api.js";
import { problemWords } from "./words.js";

const AT_ONCE = 4;

/**
 * Call look() now and at every interval until the signal aborts. It runs for at most half of the time.
 * told: an element that shows why the view is out of date. sooner: an EventTarget whose event "look" ends a pause.
 */
export async function poll(signal, everyMs, look, told = null, sooner = null) {
  while (!signal.aborted) {
    const begun = performance.now();
    let pauseMs = everyMs;
    try {
      await look();
      if (told) told.hidden = true;
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      pauseMs = Math.max(everyMs, (error.retryAfterS || 0) * 1000);
      if (told) {
        told.textContent = `This page is out of date. ${problemWords(error)}`;
        told.hidden = false;
      }
    }
    await pause(signal, Math.max(pauseMs, performance.now() - begun), sooner);
    while (document.hidden && !signal.aborted) await pause(signal, 1000);
  }
}

function pause(signal, ms, sooner = null) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      if (sooner) sooner.removeEventListener("look", done);
      resolve();
    }
    signal.addEventListener("abort", done);
    if (sooner) sooner.addEventListener("look", done);
  });
}

/** Call act with each item, at most 4 at a time. */
export async function each(items, act) {
  const left = [...items];
  const worker = async () => {
    while (left.length) await act(left.shift());
  };
  await Promise.all(Array.from({ length: Math.min(AT_ONCE, left.length) }, worker));
}

/** Load a listener: {listener, etag}. */
export async function lookAtListener(queueId, listenerId, signal) {
  const { body, etag } = await ask("getListener", { ids: { queue_id: queueId, listener_id: listenerId }, signal });
  return { listener: body.listener, etag };
}

/** Track which rows of a table are on the screen. appeared: an EventTarget that gets "look" when a row appears. */
export function visibleRows() {
  const visible = new Set();
  const appeared = new EventTarget();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting) visible.add(entry.target);
      else visible.delete(entry.target);
    }
    if (entries.some((entry) => entry.isIntersecting)) appeared.dispatchEvent(new Event("look"));
  });
  return { watch: (row) => observer.observe(row), has: (row) => visible.has(row), appeared };
}
