// The pages to sign in, to register, to change the password and to create an organization.

import { ask, session } from "./api.js";
import { button, el, hash, notice } from "./dom.js";
import { form } from "./forms.js";
import { keep, kept } from "./kept.js";
import { problemWords } from "./words.js";

const OPEN = document.documentElement.dataset.registration === "open";
const MAIL = document.documentElement.dataset.mail === "on";
const OIDC = document.documentElement.dataset.oidc; // the provider's name; empty without one
const FAILED = "#/signin/";
const REASONS = {
  blocked: "This account is blocked. Ask the operator of this server.",
  busy: "Too many people are signing in at the moment. Try again later.",
  cancelled: `${OIDC} did not sign you in. Try again.`,
  domain: "Addresses of your domain can't sign in here. Ask the operator of this server.",
  email: `${OIDC} has not verified your e-mail address, or does not tell it. Verify it there, then try again.`,
  stale: "This sign-in was not begun in this browser, or took longer than ten minutes. Try again.",
  taken: "The account with your e-mail address belongs to another person. Ask the operator of this server.",
  unavailable: `${OIDC} can't be reached at the moment. Try again later.`,
  unknown: "No account has your e-mail address. If registration is closed, ask a member of an organization for an invitation. If your account was deleted a moment ago, sign in again.",
};
const CHOSEN = "everput.organization"; // an id; of this tab

/** Show the form to sign in or register. then: called once signed in. */
export function showSignIn(main, then, { registering = false } = {}) {
  document.title = "Sign in – Everput";
  const who = [
    { name: "email", label: "E-mail address", type: "email", required: true, autocomplete: "username" },
    {
      name: "password",
      label: "Password",
      type: "password",
      required: true,
      autocomplete: registering ? "new-password" : "current-password",
    },
  ];
  const signIn = async (given) => {
    await ask("startSession", { body: given });
    await then();
  };
  const register = async (given) => {
    await ask("createAccount", { body: given });
    await signIn(given);
  };
  const other = registering
    ? ["Already registered? ", button("Sign in", () => showSignIn(main, then), { class: "plain" })]
    : ["No account yet? ", button("Register", () => showSignIn(main, then, { registering: true }), { class: "plain" })];
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, registering ? "Register" : "Sign in"),
      location.hash.startsWith(FAILED)
        ? el("p", { class: "alert", role: "alert" }, REASONS[location.hash.slice(FAILED.length)] || `${OIDC} did not prove who you are. Try again, or tell the operator of this server.`)
        : null,
      providerButton(),
      form({ fields: who, submit: registering ? "Register" : "Sign in", onSubmit: registering ? register : signIn }),
      OPEN
        ? el("p", {}, ...other)
        : el(
            "p",
            { class: "quiet" },
            "Registration is closed. Ask a member of an organization for an invitation, or the operator for an account (`everput init --email ADDRESS`).",
          ),
      MAIL && !registering
        ? el("p", {}, "Forgot your password? ", button("Reset password", () => showForgotten(main, then), { class: "plain" }))
        : null,
    ),
  );
  main.querySelector("input").focus();
}

/** Create the button that leads to the OpenID Connect provider; null without one. The browser comes back to this page. */
export function providerButton() {
  return OIDC ? el("div", { class: "row" }, button(`Sign in with ${OIDC}`, goToProvider, { class: "primary" })) : null;
}

async function goToProvider() {
  const page = location.hash.startsWith(FAILED) ? "" : location.hash;
  try {
    location.assign((await ask("startOidc", { body: { page } })).body.url);
  } catch (error) {
    notice(problemWords(error), { alert: true });
  }
}

/** Show the form that has a mail sent. */
function showForgotten(main, then) {
  document.title = "Reset password – Everput";
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "Reset password"),
      el("p", {}, "A mail with a link is sent to you, if there is an account with this address."),
      form({
        fields: [
          { name: "email", label: "E-mail address", type: "email", required: true, autocomplete: "username" },
        ],
        submit: "Send mail",
        onSubmit: async (body) => {
          await ask("askForPasswordReset", { body });
          notice("If there is such an account, a mail is on its way. Its link works for an hour.");
        },
      }),
      el("p", {}, button("Sign in", () => showSignIn(main, then), { class: "plain" })),
    ),
  );
  main.querySelector("input").focus();
}

/** Show the form for a new password, if the address has the token of a mail. Returns whether it has. */
export function showReset(main, then) {
  const token = location.hash.startsWith("#/reset/") ? location.hash.slice("#/reset/".length) : "";
  if (token === "") return false;
  document.title = "Reset password – Everput";
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "Choose a new password"),
      form({
        fields: [
          { name: "new_password", label: "New password", type: "password", required: true, autocomplete: "new-password" },
        ],
        submit: "Save password",
        onSubmit: async (given) => {
          await ask("resetPassword", { body: { ...given, token } });
          location.hash = hash("queues");
          showSignIn(main, then);
          notice("Password changed. Sign in with it.");
        },
      }),
    ),
  );
  main.querySelector("input").focus();
  return true;
}

/** Load the account and its organizations into the session. Resolves to false if nobody is signed in. Throws Problem. */
export async function findSession() {
  try {
    session.account = (await ask("getSession")).body.account;
  } catch (error) {
    if (error.status === 401) return false;
    throw error;
  }
  session.organizations = (await ask("listOrganizations")).body.organizations;
  const chosen = kept(CHOSEN);
  session.organization = session.organizations.find((one) => one.id === chosen) || session.organizations[0] || null;
  return true;
}

export function chooseOrganization(id) {
  session.organization = session.organizations.find((one) => one.id === id) || null;
  keep(CHOSEN, id);
}

/** Show the page that changes the password. */
export function showPassword({ main }) {
  const field = (name, label, autocomplete) => ({ name, label, type: "password", required: true, autocomplete });
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "Change password"),
      el("p", {}, `For ${session.account.email}. This ends your sessions in all other browsers.`),
      form({
        fields: [
          field("password", "Current password", "current-password"),
          field("new_password", "New password", "new-password"),
        ],
        submit: "Change password",
        onSubmit: async (body) => {
          session.account = (await ask("changePassword", { body })).body.account;
          location.hash = hash("queues");
          notice("Password changed. Your other sessions are signed out.");
        },
      }),
    ),
    ...identityPanels(() => showPassword({ main })),
  );
}

/** Create the panel with the provider that the account is linked with: an array, empty without one. changed: called once it is unlinked. */
function identityPanels(changed) {
  const { email, identity } = session.account;
  if (!identity) return [];
  const shown = el(
    "section",
    { class: "panel narrow" },
    el("h2", {}, "OpenID Connect provider"),
    el("p", {}, `${email} can also sign in with `, el("code", {}, identity.issuer), "."),
    identity.has_password
      ? form({
          fields: [
            {
              name: "password",
              label: "Your password",
              type: "password",
              required: true,
              autocomplete: "current-password",
              hint: "From then on, only this password signs you in. Signing in with the provider again links the account again, and its password stops working.",
            },
          ],
          submit: "Unlink provider",
          onSubmit: async (body) => {
            session.account = (await ask("unlinkIdentity", { body })).body.account;
            changed();
            notice("Provider unlinked. Your other sessions are signed out.");
          },
        })
      : el(
          "p",
          { class: "quiet" },
          "This account has no password. To unlink the provider, set one first: ",
          MAIL ? "sign out, and reset the password there." : "ask the operator of this server for a one-time password.",
        ),
  );
  return [shown];
}

/** Show the page that creates an organization. */
export function showNewOrganization({ main, changed }) {
  const first = session.organizations.length === 0;
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, first ? "Create your organization" : "Create organization"),
      el("p", {}, "An organization owns queues, listeners, messages and API keys. Choose any name."),
      form({
        fields: [{ name: "name", label: "Name", required: true, maxlength: 200 }],
        submit: "Create organization",
        onSubmit: async (body) => {
          const created = (await ask("createOrganization", { body })).body.organization;
          session.organizations.push(created);
          chooseOrganization(created.id);
          changed();
          location.hash = hash("start");
        },
      }),
    ),
  );
}
