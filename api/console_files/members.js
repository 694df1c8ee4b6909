// The page of the organization's members and invitations, and the page that accepts an invitation.

import { ask, session } from "./api.js";
import { age, button, confirmed, copyable, dialog, el, hash, notice, table } from "./dom.js";
import { form } from "./forms.js";
import { chooseOrganization, findSession, showSignIn } from "./signin.js";
import { problemWords } from "./words.js";

const INVITATION = "#/invitation/";

/** Show the members and the open invitations of the organization. */
export async function showMembers({ main, signal }) {
  const ids = { organization_id: session.organization.id };
  const list = el("div", { class: "panel flush" });
  const open = el("div", { class: "panel flush" });

  async function look() {
    const [{ body: people }, { body: invited }] = await Promise.all([
      ask("listMembers", { ids, signal }),
      ask("listInvitations", { ids, signal }),
    ]);
    const members = people.members.map((one) => [one.email, one.blocked ? "blocked" : "can sign in"]);
    list.replaceChildren(table("Members", ["E-mail address", "Account"], members, "No members yet."));
    const rows = invited.invitations.map((one) => [
      one.email,
      age(one.created_at),
      one.expires_at.slice(0, 16).replace("T", " "),
      button("Revoke", () => revoke(ids, one, look), { class: "danger" }),
    ]);
    const columns = ["E-mail address", "Created", "Expires (UTC)", ""];
    open.replaceChildren(table("Open invitations", columns, rows, "No open invitations."));
  }

  await look();
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Members"),
      button("Invite member", () => invite(ids, look), { class: "primary" }),
    ),
    el("p", { class: "quiet" }, "All members have the same rights, also to invite other people."),
    list,
    el("h2", {}, "Open invitations"),
    open,
  );
}

function invite(ids, then) {
  dialog("Invite member", (close) =>
    form({
      fields: [{ name: "email", label: "E-mail address", type: "email", required: true, autocomplete: "off" }],
      submit: "Invite member",
      cancel: () => close(),
      onSubmit: async (body) => {
        const { invitation } = (await ask("createInvitation", { ids, body })).body;
        close();
        await showLink(invitation);
        await then();
      },
    }),
  );
}

function showLink({ email, link, mailed, token }) {
  return dialog(`Invitation for ${email}`, (close) =>
    el(
      "div",
      {},
      el(
        "p",
        {},
        el("strong", {}, "This link is shown only once."),
        " Whoever opens it can become a member. It works once, within seven days.",
        mailed ? " It is also sent by mail." : " Send it to the person.",
      ),
      copyable(link || `${location.href.split("#")[0]}${INVITATION}${token}`, "Invitation link"),
      el("div", { class: "row" }, button("Done", () => close(), { class: "primary" })),
    ),
  );
}

async function revoke(ids, { id, email }, then) {
  const sure = await confirmed(`Revoke the invitation for ${email}?`, {
    explain: "Its link stops working. You can invite the person again.",
    yes: "Revoke invitation",
  });
  if (!sure) return;
  try {
    await ask("revokeInvitation", { ids: { ...ids, invitation_id: id } });
    notice(`Invitation for ${email} revoked.`);
    await then();
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

/** Show the page on which the signed-in account accepts the invitation in the address. */
export function showInvitation({ main, ids: { token }, changed }) {
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "Accept invitation"),
      el("p", {}, `You are signed in as ${session.account.email}. This account becomes a member of the organization.`),
      form({
        fields: [],
        submit: "Accept invitation",
        onSubmit: async () => {
          const { organization } = (await ask("acceptInvitation", { body: { token } })).body;
          await findSession();
          enter(organization, changed);
        },
      }),
    ),
  );
}

/** Show the form to register with the invitation in the address, for a person who is not signed in. Returns whether the
 * address has an invitation. then: called once signed in. */
export function showInvited(main, then) {
  if (!location.hash.startsWith(INVITATION)) return false;
  const token = location.hash.slice(INVITATION.length);
  document.title = "Invitation – Everput";
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "You are invited"),
      el("p", {}, "Choose a password. Your account gets the e-mail address that was invited."),
      form({
        fields: [{ name: "password", label: "Password", type: "password", required: true, autocomplete: "new-password" }],
        submit: "Register",
        onSubmit: async ({ password }) => {
          const { account, organization } = (await ask("registerInvited", { body: { token, password } })).body;
          await ask("startSession", { body: { email: account.email, password } });
          await findSession();
          enter(organization, then);
        },
      }),
      el("p", {}, "Already registered? ", button("Sign in", () => showSignIn(main, then), { class: "plain" })),
    ),
  );
  main.querySelector("input").focus();
  return true;
}

function enter(organization, then) {
  chooseOrganization(organization.id);
  location.hash = hash("overview");
  then();
  notice(`You are a member of ${organization.name}.`);
}
