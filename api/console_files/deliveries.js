// A listener's retrying and parked deliveries, and the buttons that retry them now and cancel that.

import { ask, nextCursor } from "./api.js";
import { age, button, confirmed, el, hash, link, notice, noticed, panel, redraw, state, tableOf } from "./dom.js";
import { count, noDeliveries, outcome } from "./words.js";

const PAGE = 50;
const PAGES_AT_ONCE = 20; // a page may be empty while there is a next one
const COLUMNS = ["", "Message", "State", "Attempts", "Last answer", "Next attempt"];

/**
 * Create the panel: {element, look}. redriven: called with the number of retried deliveries; with null if that was cancelled.
 * look() refreshes it, unless a row is selected or more than one page is shown.
 */
export function deliveriesPanel(ids, signal, redriven = () => {}) {
  const choice = el(
    "select",
    { "aria-label": "Filter by state", onchange: () => noticed(first) },
    ["", "parked", "retrying", "pending"].map((one) => el("option", { value: one }, one || "All states")),
  );
  const body = el("tbody");
  const all = el("input", {
    type: "checkbox",
    "aria-label": "Select all shown deliveries",
    onchange: () => {
      for (const box of boxes()) box.checked = all.checked;
      draw();
    },
  });
  const columns = [all, ...COLUMNS.slice(1)];
  const table = tableOf("Retrying and parked deliveries", columns, body, { hidden: true });
  const empty = el("p", { class: "quiet" }, "Loading…");
  const some = button("Retry selected", () => redrive(chosen()), { needs: "redriveListener", hidden: true, class: "primary" });
  const whole = button("Retry all", () => redrive(null), { needs: "redriveListener", hidden: true });
  const stop = button("Cancel retries", cancel, { needs: "cancelRedrives", hidden: true });
  const more = button("Show more", () => noticed(() => add()), { hidden: true });
  const inMessages = el("a", {}, "Show the messages");
  const element = panel("Retrying and parked", el("div", { class: "row" }, choice, some, whole, stop, inMessages), empty, table, more);
  let cursor = null;
  let pages = 0;
  let begun = false; // whether a retry was begun on this page and not cancelled
  let waits = false; // whether a shown delivery waits for a retry that was asked for

  const boxes = () => [...body.querySelectorAll("input")];
  const chosen = () =>
    boxes()
      .filter((one) => one.checked)
      .map((one) => one.value);

  function draw() {
    const many = chosen().length;
    some.hidden = many === 0;
    some.textContent = `Retry ${many} selected`;
    all.checked = many > 0 && many === boxes().length;
  }

  async function page(from) {
    const rows = [];
    let at = from;
    for (let tries = 0; tries < PAGES_AT_ONCE && rows.length === 0; tries += 1) {
      const answer = (
        await ask("listDeliveries", { ids, query: { state: choice.value, limit: PAGE, cursor: at }, signal })
      ).body;
      rows.push(...answer.deliveries);
      at = nextCursor(answer);
      if (at === null) break;
    }
    return [rows, at];
  }

  async function first() {
    const [rows, next] = await page(null);
    redraw(
      body,
      rows.map((one) => row(ids, one, draw)),
    );
    waits = rows.some(isRedriven);
    cursor = next;
    pages = 1;
    shown();
  }

  async function add() {
    const [rows, next] = await page(cursor);
    body.append(...rows.map((one) => row(ids, one, draw)));
    waits = waits || rows.some(isRedriven);
    cursor = next;
    pages += 1;
    shown();
  }

  function shown() {
    // A delivery that is pending here waits for its message's time.
    const filters = { state: choice.value === "pending" ? "scheduled" : choice.value, listener: ids.listener_id };
    inMessages.href = `${hash("queues", ids.queue_id)}?${new URLSearchParams(filters)}`;
    const none = body.children.length === 0;
    table.hidden = none;
    empty.hidden = !none;
    empty.textContent = noDeliveries(choice.value);
    more.hidden = cursor === null;
    whole.hidden = none;
    stop.hidden = !waits && !(begun && choice.value === "parked");
    draw();
  }

  async function redrive(messages) {
    if (messages === null) {
      const sure = await confirmed("Retry all deliveries?", {
        explain: "Each parked or retrying delivery of this listener is sent now, and starts again with all its attempts.",
        yes: "Retry all",
        danger: false,
      });
      if (!sure) return;
    }
    await noticed(async () => {
      const answer = (await ask("redriveListener", { ids, body: messages === null ? {} : { messages } })).body;
      notice(`Retrying ${count(answer.count, "delivery", "deliveries")}.`);
      begun = true;
      redriven(answer.count);
      await first();
    });
  }

  async function cancel() {
    const sure = await confirmed("Cancel the retries?", {
      explain: "Deliveries that were not attempted since are parked or retrying as before. Attempts that are under way continue.",
      yes: "Cancel retries",
    });
    if (!sure) return;
    await noticed(async () => {
      const answer = (await ask("cancelRedrives", { ids })).body;
      notice(`Cancelled the retries of ${count(answer.count, "delivery", "deliveries")}.`);
      begun = false;
      redriven(null);
      await first();
    });
  }

  async function look() {
    if (chosen().length === 0 && pages <= 1) await first();
  }

  return { element, look };
}

/** Return whether a delivery is due at once because somebody asked for it, and was not attempted since. */
function isRedriven(delivery) {
  return delivery.state === "retrying" && delivery.next_attempt_at === null;
}

function row(ids, delivery, changed) {
  const { message } = delivery;
  const box = el("input", {
    type: "checkbox",
    value: message.id,
    "aria-label": `Select ${message.name}`,
    onchange: changed,
  });
  const cells = [
    box,
    link(["queues", ids.queue_id, "messages", message.id], message.name, { class: "name" }),
    state(delivery.state),
    String(delivery.attempts),
    delivery.attempts ? [outcome(delivery.last_status, delivery.last_error), " ", age(delivery.last_attempt_at)] : "–",
    age(delivery.next_attempt_at),
  ];
  return el(
    "tr",
    {},
    cells.map((cell, index) => el("td", { "data-label": COLUMNS[index] }, cell)),
  );
}
