// A queue's messages: put one, list those of a time range.

import { ask, newKey, nextCursor } from "./api.js";
import { age, button, el, link, panel, table } from "./dom.js";
import { form } from "./forms.js";
import { problemWords, shortened } from "./words.js";

const PAGE = 25; // each has its data in it
const PAGES_AT_ONCE = 20; // a page may be empty while there is a next one

/** Create the panel with the newest messages. */
export async function messagesPanel(queue, signal) {
  const list = el("div");
  const range = form({
    inline: true,
    fields: [
      { name: "from", label: "From", type: "moment" },
      { name: "to", label: "To", type: "moment" },
    ],
    submit: "Show messages",
    others: [["Show newest", () => reset()]],
    onSubmit: (given) => show(given),
  });

  async function reset() {
    range.reset();
    await show({});
  }

  async function show(asked) {
    const shown = [];
    const further = button("Show older", () => carryOut(), { hidden: true });
    const alert = el("p", { class: "alert", role: "alert", hidden: true });
    const box = el("div");
    let cursor = null;
    async function add() {
      const begun = shown.length;
      for (let page = 0; page < PAGES_AT_ONCE && shown.length === begun; page += 1) {
        const { body } = await ask("listMessages", {
          ids: { queue_id: queue.id },
          query: { ...asked, limit: PAGE, cursor },
          signal,
        });
        shown.push(...body.messages);
        cursor = nextCursor(body);
        if (cursor === null) break;
      }
      further.hidden = cursor === null;
      box.replaceChildren(messageTable(queue, shown));
    }
    async function carryOut() {
      further.disabled = true;
      alert.hidden = true;
      try {
        await add();
      } catch (error) {
        if (error.name === "AbortError") return;
        alert.textContent = problemWords(error);
        alert.hidden = false;
      }
      further.disabled = false;
    }
    await add();
    list.replaceChildren(box, alert, further);
  }

  await show({});
  return panel(
    "Messages",
    putForm(queue, () => show({})),
    range,
    list,
  );
}

function messageTable(queue, messages) {
  const rows = messages.map((message) => [
    link(["queues", queue.id, "messages", message.id], message.name, { class: "name" }),
    age(message.created_at),
    el("code", { class: "data" }, shortened(message.data, 100)),
  ]);
  return table("Messages, newest first", ["Message", "Put", "Data"], rows, "No messages in this time range.");
}

function putForm(queue, then) {
  let once = newKey(); // a message that is sent again after an error is stored once
  let sent = "";
  const box = form({
    needs: "putMessage",
    fields: [
      { name: "data", label: "Data", type: "textarea", hint: "Any text, up to 1 MiB." },
      { name: "name", label: "Name", advanced: true, maxlength: 200, hint: "Leave empty to generate one." },
      {
        name: "key",
        label: "Ordering key",
        advanced: true,
        maxlength: 200,
        hint: "Messages with the same key are delivered one at a time, in order.",
      },
      { name: "deliver_at", label: "Deliver at", hint: "Not delivered before this time.", type: "moment", advanced: true },
    ],
    submit: "Put message",
    onSubmit: async (given) => {
      const body = { data: given.data };
      for (const name of ["name", "key", "deliver_at"]) if (given[name]) body[name] = given[name];
      if (JSON.stringify(body) !== sent) once = newKey();
      sent = JSON.stringify(body);
      const { message } = (await ask("putMessage", { ids: { queue_id: queue.id }, body, once })).body;
      sent = "";
      box.reset();
      result.replaceChildren(
        "Message put: ",
        link(["queues", queue.id, "messages", message.id], message.name),
        ". Open it to see its deliveries.",
      );
      await then();
    },
  });
  const result = el("p", { role: "status" });
  return el("details", { class: "put" }, el("summary", {}, "Put message"), box, result);
}
