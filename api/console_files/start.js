// The page that leads from a new organization to a first delivery: queue and key, samples, the play inbox.
//
// The API key is held only in this page's elements. It is gone when the page is left.

import { ask, putSamples, session, whyNot } from "./api.js";
import { button, codeBlock, copyable, el, link, notice, panel, tabs } from "./dom.js";
import { form } from "./forms.js";
import { inbox } from "./play.js";
import { problemWords } from "./words.js";

const QUEUE = "my-first-queue";
const KEY = "getting started";

/** Return the view that the console begins with: `start` for an organization without queues. */
export async function firstView() {
  if (whyNot("createKey") || whyNot("createQueue")) return "overview";
  try {
    return (await ask("listQueues", { query: { limit: 1 } })).body.queues.length ? "overview" : "start";
  } catch {
    return "overview"; // it shows why
  }
}

export function showStart({ main, signal }) {
  const steps = el("div");
  main.replaceChildren(
    el("h1", { class: "title", tabindex: "-1" }, "Get started"),
    el("p", { class: "quiet" }, "A program puts messages on a queue. Everput delivers each message to every listener of the queue."),
    steps,
  );
  steps.append(
    panel(
      "1. Create a queue and an API key",
      form({
        fields: [{ name: "name", label: "Queue name", required: true, maxlength: 200, value: QUEUE, hint: "If the queue exists already, it is used." }],
        submit: "Create queue and key",
        needs: "createQueue",
        onSubmit: async ({ name }) => {
          const queue = await queueOf(name);
          const { key } = (await ask("createKey", { ids: { organization_id: session.organization.id }, body: { name: KEY, scopes: ["queues", "messages"] } })).body;
          const samples = await putSamples({ key: key.secret, queueId: queue.id });
          if (!signal.aborted) showSteps(steps, queue, key, samples, signal);
        },
      }),
    ),
  );
}

async function queueOf(name) {
  const [known] = (await ask("listQueues", { query: { name } })).body.queues;
  return known || (await ask("createQueue", { body: { name } })).body.queue;
}

function showSteps(steps, queue, key, samples, signal) {
  const next = el("div", { role: "status" });
  const first = () => {
    if (next.childNodes.length) return;
    next.append(
      el(
        "p",
        { class: "state delivered big" },
        "Your first message was delivered.",
      ),
      el("p", {}, "Next: create a listener with the URL of your own program on ", link(["queues", queue.id], "the queue's page"), ", or open ", link(["queues", queue.id, "play"], "the play inbox"), " again later. ", el("a", { href: "docs" }, "The API reference"), " has all operations."),
    );
  };
  steps.replaceChildren(
    panel(
      `1. API key for queue “${queue.name}”`,
      el("p", {}, el("strong", {}, "This key is shown only once."), " Copy it now and store it safely. The samples below contain it."),
      copyable(key.secret, "API key"),
    ),
    panel(
      "2. Put a message",
      el("p", { class: "quiet" }, "Copy a sample and run it, for example curl in a terminal."),
      tabs("Language", samples.map(([label, source]) => [label, codeBlock(source, `${label} sample`)])),
      el("div", { class: "row" }, el("span", { class: "quiet" }, "No terminal at hand?"), button("Put it from here", () => put(queue), { needs: "putMessage" })),
    ),
    next,
    inbox(queue, signal, first),
  );
  steps.querySelector("h2").scrollIntoView({ block: "nearest" });
}

async function put(queue) {
  try {
    await ask("putMessage", { ids: { queue_id: queue.id }, body: { data: "Hello from the console" } });
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}
