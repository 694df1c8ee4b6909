// The console's frame: who is signed in, which view the address names, the navigation.
//
// For: starting, going from view to view. Not for: what a view shows. A view is given {main, ids, signal, changed}: where it
// is shown, what the address names, when it is left, and what to call when the navigation has something else to say.

import { ask, session, whyNot } from "./api.js";
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

// Each view: its address, after `o/<organization's id>/` where it is of an organization; how to show it; the operation
// that the member's role must allow.
const VIEWS = [
  ["start", showStart, "createKey"],
  ["overview", showOverview],
  ["queues", showQueues],
  ["queues/:queue_id", showQueue],
  ["queues/:queue_id/play", showPlay, "createListener"],
  ["queues/:queue_id/listeners/:listener_id", showListener],
  ["queues/:queue_id/messages/:message_id", showMessage],
  ["log", showLog, "readLog"],
  ["keys", showKeys, "listKeys"],
  ["members", showMembers],
  ["invitation/:token", showInvitation],
  ["organizations/new", showNewOrganization],
  ["password", showPassword],
];
const main = document.getElementById("main");
const nav = document.getElementById("nav");
let leaving = new AbortController();

/** What the address names: {organization, show, needs, ids, query, rest}. organization: an id, or null in an old address. */
function destination() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/");
  const organization = parts[0] === "o" && parts.length > 1 ? decoded(parts.splice(0, 2)[1]) : null;
  const rest = parts.map(decoded);
  for (const [pattern, show, needs] of VIEWS) {
    const names = pattern.split("/");
    if (names.length !== parts.length) continue;
    const ids = {};
    const fits = names.every((name, index) => {
      if (!name.startsWith(":")) return name === parts[index];
      ids[name.slice(1)] = decoded(parts[index]);
      return parts[index] !== "";
    });
    if (fits) return { organization, show, needs, ids, query: new URLSearchParams(query), rest };
  }
  return { organization, show: null };
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
  const ofOrganization = ![showInvitation, showNewOrganization, showPassword].includes(found.show);
  if (found.organization !== null && !(await entered(found.organization))) {
    if (session.account && !signal.aborted) showForeign(found.organization);
    return;
  }
  if (signal.aborted) return;
  if (!session.organization && ofOrganization) {
    location.hash = hash("organizations", "new");
    return;
  }
  if (!found.show) {
    const view = await firstView();
    if (!signal.aborted) location.replace(hash(view));
    return;
  }
  if (ofOrganization && found.organization === null) {
    // An address from before addresses named the organization is one of the chosen organization.
    const query = location.hash.split("?")[1];
    location.replace(hash(...found.rest) + (query ? `?${query}` : ""));
    return;
  }
  drawNavigation();
  const reason = found.needs ? whyNot(found.needs) : "";
  if (reason) {
    showOnly("Not for your role", reason);
    return;
  }
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

/** Act in an organization from here on. Resolves to whether the account is a member of it. */
async function entered(id) {
  if (session.organization && session.organization.id === id) return true;
  // Somebody else may have invited the account since the page was loaded.
  if (!session.organizations.some((one) => one.id === id) && !(await findSession())) {
    window.dispatchEvent(new Event("signed-out"));
    return false;
  }
  if (!session.organizations.some((one) => one.id === id)) return false;
  chooseOrganization(id);
  return true;
}

function showForeign(id) {
  drawNavigation();
  showOnly(
    "Not your organization",
    `This page belongs to the organization ${id}. ${session.account.email} is not a member of it. Ask an owner for an invitation, or sign in with another account.`,
  );
}

function showOnly(title, text) {
  document.title = `${title} – Everput`;
  const heading = el("h1", { tabindex: "-1" }, title);
  const way = session.organization ? link(["overview"], `Go to ${session.organization.name}`) : null;
  main.replaceChildren(el("section", { class: "panel narrow" }, heading, el("p", {}, text), el("div", { class: "row" }, way)));
  heading.focus({ preventScroll: true });
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
        location.hash = `#/o/${encodeURIComponent(choice.value)}/overview`;
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
