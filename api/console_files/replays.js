// A listener's replays: count, start, watch, pause, cancel.

import { ask, nextCursor } from "./api.js";
import { age, button, confirmed, el, notice, panel, redraw, state, table } from "./dom.js";
import { form } from "./forms.js";
import { concerns, poll } from "./live.js";
import { paces, progressBar } from "./progress.js";
import { count, duration, problemWords } from "./words.js";

const LOOK_MS = 3000;
const ONLY = [
  ["all", "all messages"],
  ["failed", "messages that failed"],
  ["undelivered", "messages that were not delivered"],
];

/** Create the panel, which refreshes itself. */
export async function replaysPanel(ids, signal) {
  const list = el("div");
  const told = el("p", { class: "alert", hidden: true });
  const pace = paces();

  async function look() {
    const replays = (await allReplays(ids, signal)).reverse();
    redraw(list, replayTable(ids, replays, look, pace));
  }

  await look();
  poll(signal, LOOK_MS, look, told, null, concerns(ids, "replay", "listener"));
  return panel(
    "Replays",
    el("details", {}, el("summary", {}, "Replay a time range"), replayForm(ids, look)),
    told,
    list,
  );
}

function isGoingOn(replay) {
  return replay.state === "running" || replay.state === "paused";
}

async function allReplays(ids, signal) {
  const found = [];
  let cursor = null;
  do {
    const { body } = await ask("listReplays", { ids, query: { limit: 1000, cursor }, signal });
    found.push(...body.replays);
    cursor = nextCursor(body);
  } while (cursor !== null);
  return found;
}

function replayTable(ids, replays, changed, pace) {
  const rows = replays.map((one) => [
    [begin(one.from), " – ", new Date(one.to).toLocaleString()],
    [count(one.count, "message"), one.count_is_exact ? "" : " or more", one.only === "all" ? "" : ` (${one.only})`],
    one.notify_url || "the listener",
    progress(one, pace),
    age(one.created_at),
    actions(ids, one, changed),
  ]);
  return table("Replays", ["Time range", "Messages", "To", "Progress", "Started", ""], rows, "No replays yet.");
}

function begin(time) {
  return Date.parse(time) === 0 ? "the beginning" : new Date(time).toLocaleString();
}

function progress(replay, pace) {
  const shown = [state(replay.state)];
  if (replay.paused) shown.push(` ${replay.paused}`);
  if (isGoingOn(replay) && replay.progress !== undefined) {
    const done = Math.round(replay.progress * replay.count);
    const perS = replay.state === "running" ? pace(replay.id, done) : null;
    shown.push(progressBar({ done, all: replay.count, noun: "message", perS, label: "Progress of the replay" }));
  }
  return shown;
}

function actions(ids, replay, changed) {
  if (!isGoingOn(replay)) return "";
  const named = { ...ids, replay_id: replay.id };
  const act = async (name) => {
    try {
      await ask(name, { ids: named });
      await changed();
    } catch (error) {
      if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
    }
  };
  const cancel = async () => {
    if (await confirmed("Cancel this replay?", { explain: "Its remaining messages are not delivered.", yes: "Cancel replay" }))
      await act("cancelReplay");
  };
  return [
    replay.state === "paused"
      ? button("Resume", () => act("resumeReplay"), { needs: "pauseReplay", "data-replay": replay.id })
      : button("Pause", () => act("pauseReplay"), { needs: "pauseReplay", "data-replay": replay.id }),
    " ",
    button("Cancel", cancel, { needs: "cancelReplay", class: "danger", "data-replay": replay.id }),
  ];
}

function replayForm(ids, changed) {
  const result = el("p", { role: "status" });
  const bodyOf = (given) => {
    const body = { from: given.from || "beginning", only: given.only };
    for (const name of ["to", "notify_url", "liveness_url"]) if (given[name]) body[name] = given[name];
    if (given.rate_per_s) body.rate_per_s = Number(given.rate_per_s);
    return body;
  };
  const box = form({
    needs: "replayToListener",
    fields: [
      { name: "from", label: "From", type: "moment", hint: "Leave empty to start at the beginning." },
      { name: "to", label: "To", type: "moment", hint: "Leave empty to end now." },
      { name: "only", label: "Deliver", type: "select", options: ONLY, value: "all" },
      {
        name: "rate_per_s",
        label: "Deliveries per second",
        type: "number",
        min: 0,
        step: "any",
        hint: "At most. Leave empty for the listener's own limit.",
      },
      {
        name: "notify_url",
        label: "Other notify_url",
        inputmode: "url",
        advanced: true,
        hint: "Leave empty to deliver to the listener itself. A URL with another scheme, host or port gets none of the listener’s headers.",
      },
      { name: "liveness_url", label: "Other liveness_url", inputmode: "url", advanced: true },
    ],
    submit: "Start replay",
    others: [
      [
        "Count only",
        async (given) => {
          const planned = (await ask("replayToListener", { ids, body: { ...bodyOf(given), dry_run: true } })).body
            .replay;
          const time = `about ${duration(planned.estimated_s)} if the listener keeps up`;
          result.textContent = `${count(planned.count, "message")}${planned.count_is_exact ? "" : " or more"}, ${time}. Nothing was sent.`;
        },
      ],
    ],
    onSubmit: async (given) => {
      const { replay } = (await ask("replayToListener", { ids, body: bodyOf(given) })).body;
      result.textContent = `Replay started: ${count(replay.count, "message")}${replay.count_is_exact ? "" : " or more"}.`;
      await changed();
    },
  });
  return el("div", {}, box, result);
}
