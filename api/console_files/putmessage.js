// The form that puts a message on a queue.

import { ask, newKey } from "./api.js";
import { el, link } from "./dom.js";
import { form } from "./forms.js";

/** Create the form. then(): called after each put. */
export function putForm(queue, then) {
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
