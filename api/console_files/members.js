// The page of the organization's members and invitations, and the page that accepts an invitation.

import { ask, session, whyNot } from "./api.js";
import { age, button, confirmed, copyable, dialog, el, hash, notice, table } from "./dom.js";
import { form } from "./forms.js";
import { chooseOrganization, findSession, providerButton, showSignIn } from "./signin.js";
import { problemWords } from "./words.js";

const INVITATION = "#/invitation/";

const ROLES = [
  ["owner", "owner: everything, also members and their roles"],
  ["developer", "developer: queues, messages, API keys and the log"],
  ["operator", "operator: read everything but API keys; pause, test, redrive and replay"],
  ["auditor", "auditor: read everything but API keys; change nothing"],
];

/** Show the members and the open invitations of the organization. */
export async function showMembers({ main, signal, changed }) {
  const ids = { organization_id: session.organization.id };
  const reason = whyNot("createInvitation"); // the same scope as for changes of members
  const list = el("div", { class: "panel flush" });
  const open = el("div", { class: "panel flush" });

  async function look() {
    const [{ body: people }, { body: invited }] = await Promise.all([
      ask("listMembers", { ids, signal }),
      reason ? { body: { invitations: [] } } : ask("listInvitations", { ids, signal }),
    ]);
    const members = people.members.map((one) => [
      one.email,
      reason ? one.role : roleChoice(ids, one, then),
      one.blocked ? "blocked" : "can sign in",
      one.id === session.account.id
        ? button("Leave", () => leave(ids, one, changed), { class: "danger" })
        : button("Remove", () => remove(ids, one, look), { needs: "createInvitation", class: "danger" }),
    ]);
    list.replaceChildren(table("Members", ["E-mail address", "Role", "Account", ""], members, "No members yet."));
    const rows = invited.invitations.map((one) => [
      one.email,
      one.role,
      age(one.created_at),
      one.expires_at.slice(0, 16).replace("T", " "),
      button("Revoke", () => revoke(ids, one, look), { class: "danger" }),
    ]);
    const columns = ["E-mail address", "Role", "Created", "Expires (UTC)", ""];
    open.replaceChildren(table("Open invitations", columns, rows, "No open invitations."));
  }

  async function then(account) {
    // Somebody who gives up a role sees at once what the new role may do.
    if (account.id === session.account.id) {
      await findSession();
      changed();
      await showMembers({ main, signal, changed });
    } else await look();
  }

  await look();
  main.replaceChildren(
    el(
      "div",
      { class: "title" },
      el("h1", { tabindex: "-1" }, "Members"),
      button("Invite member", () => invite(ids, look), { needs: "createInvitation", class: "primary" }),
    ),
    el("p", { class: "quiet" }, reason || "A role says what a member may do. API keys stay when a member leaves or gets another role."),
    list,
    ...(reason ? [] : [el("h2", {}, "Open invitations"), open]),
  );
}

function roleChoice(ids, member, then) {
  const choice = el(
    "select",
    {
      "aria-label": `Role of ${member.email}`,
      onchange: async () => {
        try {
          await ask("changeMember", { ids: { ...ids, account_id: member.id }, body: { role: choice.value } });
          notice(`${member.email} has the role ${choice.value}.`);
          await then(member);
        } catch (error) {
          if (error.name === "AbortError") return;
          choice.value = member.role;
          notice(problemWords(error), { alert: true });
        }
      },
    },
    ROLES.map(([role]) => el("option", { value: role, selected: role === member.role }, role)),
  );
  return choice;
}

async function remove(ids, { id, email }, then) {
  const sure = await confirmed(`Remove ${email}?`, {
    explain: "The next request of this member is refused. API keys that the member has created stay valid: revoke those that only the member knows.",
    yes: "Remove member",
  });
  if (!sure) return;
  try {
    await ask("removeMember", { ids: { ...ids, account_id: id } });
    notice(`${email} removed.`);
    await then();
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

async function leave(ids, { id }, changed) {
  const { name } = session.organization;
  const sure = await confirmed(`Leave ${name}?`, {
    explain: "You can come back only with an invitation.",
    yes: "Leave organization",
  });
  if (!sure) return;
  try {
    await ask("removeMember", { ids: { ...ids, account_id: id } });
    await findSession();
    location.hash = session.organization ? hash("overview") : hash("organizations", "new");
    changed();
    notice(`You have left ${name}.`);
  } catch (error) {
    if (error.name !== "AbortError") notice(problemWords(error), { alert: true });
  }
}

function invite(ids, then) {
  dialog("Invite member", (close) =>
    form({
      fields: [
        { name: "email", label: "E-mail address", type: "email", required: true, autocomplete: "off" },
        { name: "role", label: "Role", type: "select", options: ROLES, value: "developer" },
      ],
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
      providerButton(),
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
