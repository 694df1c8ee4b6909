// The console's frame: who is signed in, which view the address names, the navigation.
//
// For: starting, going from view to view. Not for: what a view shows. A view is given {main, ids, signal, changed}: where it
// is shown, what the address names, when it is left, and what to call when the navigation has something else to say.

import { ask, session } from "./api.js";
import { button, el, growOlder, hash, link, notice } from "./dom.js";
import { showKeys } from "./keys.js";
import { showListener } from "./listener.js";
import { showLog } from "./log.js";
import { showInvitation, showInvited, showMembers } from "./members.js";
import { showMessage } from "./message.js";
import { showOverview } from "./overview.js";
import { inboxRemoved, showPlay } from "./play.js";
import { showQueue } from "./queue.js";
import { showQueues } from "./queues.js";
import { listenToKeys, openPalette } from "./shortcuts.js";
import { chooseOrganization, findSession, showNewOrganization, showPassword, showReset, showSignIn } from "./signin.js";
import { firstView, showStart } from "./start.js";
import { problemWords } from "./words.js";

const VIEWS = [
  ["start", showStart],
  ["overview", showOverview],
  ["queues", showQueues],
  ["queues/:queue_id", showQueue],
  ["queues/:queue_id/play", showPlay],
  ["queues/:queue_id/listeners/:listener_id", showListener],
  ["queues/:queue_id/messages/:message_id", showMessage],
  ["log", showLog],
  ["keys", showKeys],
  ["members", showMembers],
  ["invitation/:token", showInvitation],
  ["organizations/new", showNewOrganization],
  ["password", showPassword],
];
const main = document.getElementById("main");
const nav = document.getElementById("nav");
let leaving = new AbortController();

/** What the address names: {show, ids, query}. */
function destination() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/");
  for (const [pattern, show] of VIEWS) {
    const names = pattern.split("/");
    if (names.length !== parts.length) continue;
    const ids = {};
    const fits = names.every((name, index) => {
      if (!name.startsWith(":")) return name === parts[index];
      ids[name.slice(1)] = decoded(parts[index]);
      return parts[index] !== "";
    });
    if (fits) return { show, ids, query: new URLSearchParams(query) };
  }
  return null;
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

async function go() {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  if (!session.account) return;
  const found = destination();
  if (!session.organization && (!found || ![showInvitation, showNewOrganization, showPassword].includes(found.show))) {
    location.hash = hash("organizations", "new");
    return;
  }
  if (!found) {
    const view = await firstView();
    if (!signal.aborted) location.replace(hash(view));
    return;
  }
  drawNavigation();
  main.replaceChildren(el("p", { class: "quiet" }, "Loading…"));
  try {
    await found.show({ main, ids: found.ids, query: found.query, signal, changed: drawNavigation });
    if (signal.aborted) return;
    const heading = main.querySelector("h1");
    if (heading) {
      document.title = `${heading.textContent} – Everput`;
      heading.focus({ preventScroll: true });
    }
    window.scrollTo(0, 0);
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") return;
    main.replaceChildren(
      el(
        "section",
        { class: "panel narrow" },
        el("h1", { tabindex: "-1" }, error.status === 404 ? "Not found" : "This page could not be loaded"),
        el("p", {}, problemWords(error)),
        el("div", { class: "row" }, button("Try again", go, { class: "primary" }), link(["queues"], "Go to queues")),
      ),
    );
  }
}

function drawNavigation() {
  nav.hidden = false;
  const here = location.hash;
  const at = (part, text) => link([part], text, here.startsWith(hash(part)) ? { "aria-current": "page" } : {});
  const choice = el(
    "select",
    {
      "aria-label": "Organization",
      onchange: () => {
        if (choice.value === "") {
          location.hash = hash("organizations", "new");
          drawNavigation();
          return;
        }
        chooseOrganization(choice.value);
        if (location.hash === hash("overview")) go();
        else location.hash = hash("overview");
      },
    },
    session.organizations.map((one) =>
      el("option", { value: one.id, selected: session.organization && one.id === session.organization.id }, one.name),
    ),
    el("option", { value: "" }, "Create organization…"),
  );
  nav.replaceChildren(
    ...(session.organization ? [at("overview", "Overview"), at("queues", "Queues"), at("log", "Log"), at("keys", "API keys"), at("members", "Members"), choice] : []),
    ...(session.organization ? [at("start", "Get started"), button("Go to…", openPalette, { title: "Ctrl K. Press ? for all keys" })] : []),
    el("a", { href: "docs", target: "_blank", rel: "noopener" }, "API reference"),
    link(["password"], session.account.email, { class: "who", title: "Signed in as this account. Change the password" }),
    button("Sign out", signOut),
  );
}

async function signOut() {
  leaving.abort();
  await inboxRemoved();
  try {
    await ask("endSession");
  } catch (error) {
    if (error.status !== 401) {
      notice(problemWords(error), { alert: true });
      go();
      return;
    }
  }
  signedOut();
}

function signedOut() {
  leaving.abort();
  Object.assign(session, { account: null, organizations: [], organization: null });
  nav.hidden = true;
  nav.replaceChildren();
  for (const open of document.querySelectorAll("dialog")) open.close();
  if (!showInvited(main, start)) showSignIn(main, start);
}

async function start() {
  if (showReset(main, start)) return;
  try {
    if (await findSession()) await go();
    else signedOut();
  } catch (error) {
    main.replaceChildren(
      el(
        "section",
        { class: "panel narrow" },
        el("h1", {}, "The console could not start"),
        el("p", {}, problemWords(error)),
        button("Try again", start, { class: "primary" }),
      ),
    );
  }
}

setInterval(growOlder, 1000);
listenToKeys();
window.addEventListener("hashchange", go);
window.addEventListener("signed-out", () => {
  if (session.account) signedOut();
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address is the view's
  main.focus();
});
start();
