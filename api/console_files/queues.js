// The list of the organization's queues, with each queue's backlog and its listeners' states.

import { ask, nextCursor } from "./api.js";
import { button, dialog, el, hash, link, notice, since, state } from "./dom.js";
import { form } from "./forms.js";
import { sortedList } from "./lists.js";
import { poll } from "./live.js";
import { changedThresholds, thresholdFields } from "./thresholds.js";
import { HEALTHS } from "./words.js";

const LOOK_MS = 5000;
const PAGE = 1000;
const SHOWN_MAX = 2000;
const unknown = () => el("span", { class: "quiet" }, "unknown");
const COLUMNS = [
  {
    name: "Queue",
    value: (queue) => queue.name,
    cell: (queue) => link(["queues", queue.id], queue.name, { class: "name" }),
  },
  { name: "Listeners", value: worst, cell: states },
  { name: "Backlog", down: true, value: (queue) => queue.lag, cell: (queue) => number(queue, queue.lag) },
  {
    name: "Oldest",
    value: (queue) => queue.oldest_pending_at && Date.parse(queue.oldest_pending_at),
    cell: (queue) => (queue.looked ? since(queue.oldest_pending_at) : "…"),
  },
  { name: "Parked", down: true, value: (queue) => queue.parked, cell: parked },
];

export async function showQueues({ main, query, signal }) {
  const told = el("p", { class: "alert", hidden: true });
  const damaged = el(
    "p",
    { class: "alert", role: "status", hidden: true },
    "Part of the log can't be read. Deliveries that may be affected are parked with the error “damaged”; all others ",
    "continue. The operator of this installation can see what is damaged.",
  );
  const empty = el(
    "div",
    { class: "panel", hidden: true },
    el(
      "p",
      {},
      "No queues yet. Programs put messages on a queue; every listener of the queue gets every message.",
    ),
    el("div", { class: "row" }, button("Create queue", createQueue, { needs: "createQueue", class: "primary" }), link(["start"], "Get started")),
  );
  const list = sortedList({ noun: "queue", columns: COLUMNS, words: (queue) => queue.name, order: "queue", query });
  const rest = el("p", { class: "quiet", hidden: true }, `Only the ${SHOWN_MAX.toLocaleString("en")} oldest queues are shown.`);
  const box = el("div", { class: "panel" }, list.element, rest);

  async function load(shown) {
    const { queues, next } = await allQueues(shown, signal);
    empty.hidden = queues.length > 0;
    box.hidden = queues.length === 0;
    rest.hidden = next === null;
    list.show(queues);
  }

  await load({});
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Queues"),
      button("Create queue", createQueue, { needs: "createQueue", class: "primary" }),
    ),
    told,
    damaged,
    empty,
    box,
  );
  poll(
    signal,
    LOOK_MS,
    async () => {
      const { organizations } = (await ask("listOrganizations", { signal })).body;
      damaged.hidden = !organizations.some((one) => one.log_damaged);
      await load({ health: true, backlog: true });
    },
    told,
  );
}

/** Load the queues, at most SHOWN_MAX: {queues, next}. The server ends a page early if its queues have many listeners. */
export async function allQueues(shown, signal) {
  const queues = [];
  let cursor = null;
  do {
    const page = (await ask("listQueues", { query: { limit: PAGE, cursor, ...shown }, signal })).body;
    queues.push(...page.queues.map((one) => ({ ...one, looked: Boolean(shown.health) })));
    cursor = nextCursor(page);
  } while (cursor !== null && queues.length < SHOWN_MAX);
  return { queues, next: cursor };
}

/** Return how bad the worst state of a queue's listeners is; 0 is the worst. */
function worst({ health }) {
  return health ? Math.min(...Object.keys(health).map((word) => HEALTHS.indexOf(word)), HEALTHS.length) : null;
}

function states(queue) {
  if (!queue.looked) return "…";
  if (!queue.health) return unknown();
  if (!queue.listeners.length) return el("span", { class: "quiet" }, "none");
  return Object.entries(queue.health).flatMap(([word, many]) => [state(word), many > 1 ? ` × ${many} ` : " "]);
}

function number(queue, value) {
  if (!queue.looked) return "…";
  if (value === undefined) return unknown();
  return queue.listeners.length ? value.toLocaleString("en") : "–";
}

function parked(queue) {
  if (!queue.looked || !queue.parked) return number(queue, queue.parked);
  return el("span", { class: "state parked" }, queue.parked.toLocaleString("en"));
}

function createQueue() {
  dialog("Create queue", (close) =>
    form({
      fields: [
        {
          name: "name",
          label: "Name",
          required: true,
          maxlength: 200,
          hint: "For example myapp.io/orders. You can rename the queue later.",
        },
        ...thresholdFields({}),
      ],
      submit: "Create queue",
      cancel: () => close(),
      onSubmit: async (given) => {
        const body = { name: given.name, ...changedThresholds(given, {}) };
        const { queue } = (await ask("createQueue", { body })).body;
        close();
        notice(`Queue “${queue.name}” created. Add a listener to deliver its messages.`);
        location.hash = hash("queues", queue.id);
      },
    }),
  );
}
