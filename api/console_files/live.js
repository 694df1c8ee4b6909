// Keeping a view up to date while it is open.
//
// The server tells this page what has changed, in one stream of events for all views. A view asks again when something
// changed that concerns it, and every 30 seconds. While there is no stream, it asks at intervals. While the tab is hidden,
// there are neither requests nor a stream.
//
// For: when a view asks. Not for: the requests themselves (the views), the stream's form (api.js).

import { ask, follow, session } from "./api.js";
import { problemWords } from "./words.js";

const SOON_MS = 1000;
const QUIET_MS = 30_000;
const LEAVE_MS = 5000;
const AGAIN_MS = 3000;
const AGAIN_MS_MAX = 60_000;

const watchers = new Set();
let stream = null; // {controller, organization, open}
let lastId = "";

/**
 * Call look() now, when something changes, and at least every half minute, until the signal aborts.
 * everyMs: the interval while the server's stream of changes is missing; without `about`, also the least time between two
 * looks. told: an element that shows why the view is out of date. sooner: an EventTarget whose event "look" ends a pause.
 * about: a function that says whether a change {kind, queue_id, listener_id} concerns the view; without it, all do.
 */
export async function poll(signal, everyMs, look, told = null, sooner = null, about = null) {
  const watcher = Object.assign(new EventTarget(), { about, changed: false, all: false });
  watchers.add(watcher);
  signal.addEventListener("abort", () => leave(watcher));
  while (!signal.aborted) {
    connect();
    const begun = performance.now();
    let pauseMs = about ? SOON_MS : everyMs;
    let failed = false;
    watcher.changed = watcher.all = false;
    try {
      await look();
      if (told) told.hidden = true;
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      failed = true;
      pauseMs = Math.max(everyMs, (error.retryAfterS || 0) * 1000);
      if (told) {
        told.textContent = `This page is out of date. ${problemWords(error)}`;
        told.hidden = false;
      }
    }
    const tookMs = performance.now() - begun;
    let asked = await pause(signal, Math.max(pauseMs, tookMs), sooner);
    if (!failed && !asked) asked = await untilChanged(signal, watcher, sooner);
    const leftMs = everyMs - (performance.now() - begun);
    if (!asked && !watcher.changed && leftMs > 0) await pause(signal, leftMs, sooner);
    while (document.hidden && !signal.aborted) await pause(signal, SOON_MS);
  }
}

/** Return a function for poll() that takes changes of a queue, and of one of its listeners if it is given. */
export function concerns({ queue_id: queueId, listener_id: listenerId }, ...kinds) {
  const isOf = (wanted, given) => wanted === undefined || given === undefined || given === wanted;
  return (change) =>
    kinds.includes(change.kind) && isOf(queueId, change.queue_id) && isOf(listenerId, change.listener_id);
}

/** Wait for a change while the stream is open. Resolves to whether the view was asked to look sooner. */
async function untilChanged(signal, watcher, sooner) {
  if (watcher.changed || watcher.all || !stream || !stream.open) return false;
  return pause(signal, QUIET_MS, sooner, watcher);
}

/** Wait; resolves to true if the event "look" of `sooner` ended the pause. */
function pause(signal, ms, sooner = null, watcher = null) {
  return new Promise((resolve) => {
    const timer = setTimeout(() => done(), ms);
    const asked = () => done(true);
    const changed = () => done();
    function done(value = false) {
      clearTimeout(timer);
      signal.removeEventListener("abort", changed);
      if (sooner) sooner.removeEventListener("look", asked);
      if (watcher) watcher.removeEventListener("look", changed);
      resolve(value);
    }
    signal.addEventListener("abort", changed);
    if (sooner) sooner.addEventListener("look", asked);
    if (watcher) watcher.addEventListener("look", changed);
  });
}

function leave(watcher) {
  watchers.delete(watcher);
  setTimeout(() => {
    if (stream && !watchers.size) stream.controller.abort();
  }, LEAVE_MS);
}

/** Open the stream of changes of the chosen organization, unless it is open. */
function connect() {
  const organization = session.organization ? session.organization.id : null;
  if (stream && stream.organization !== organization) {
    stream.controller.abort();
    stream = null;
    lastId = "";
  }
  if (stream || document.hidden || organization === null) return;
  stream = { controller: new AbortController(), organization, open: false };
  keepOpen(stream);
}

async function keepOpen(mine) {
  const { signal } = mine.controller;
  let againMs = AGAIN_MS;
  while (!signal.aborted && watchers.size) {
    let retryMs = 0;
    try {
      await follow("watchChanges", {
        lastId,
        signal,
        take: ({ id, data }) => {
          mine.open = true;
          againMs = AGAIN_MS;
          lastId = id;
          hand(JSON.parse(data));
        },
      });
    } catch (error) {
      if (signal.aborted || error.status === 401) break;
      retryMs = (error.retryAfterS || 0) * 1000;
      againMs = Math.min(2 * againMs, AGAIN_MS_MAX);
    }
    mine.open = false;
    wake(); // to poll
    // Not all pages connect again at once when a server restarts.
    await pause(signal, Math.max(retryMs, againMs * (0.5 + Math.random())));
  }
  mine.open = false;
  if (stream === mine) stream = null;
  wake();
}

/** Hand a message of the stream to the views that it concerns. */
function hand({ all, changes }) {
  for (const watcher of watchers) {
    const concerned = !all && (watcher.about ? changes.some(watcher.about) : changes.length > 0);
    watcher.all ||= all;
    watcher.changed ||= concerned;
    if (all || concerned) watcher.dispatchEvent(new Event("look"));
  }
}

function wake() {
  for (const watcher of watchers) watcher.dispatchEvent(new Event("look"));
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    if (stream) stream.controller.abort();
  } else if (watchers.size) connect();
});

/** Load a listener: {listener, etag}. */
export async function lookAtListener(queueId, listenerId, signal) {
  const { body, etag } = await ask("getListener", { ids: { queue_id: queueId, listener_id: listenerId }, signal });
  return { listener: body.listener, etag };
}
