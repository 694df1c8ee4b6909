// Signing in, registering, and a person's organizations.

import { ask, session } from "./api.js";
import { button, el, hash, notice } from "./dom.js";
import { form } from "./forms.js";

const OPEN = document.documentElement.dataset.registration === "open";
const CHOSEN = "everput.organization"; // an id; of this tab

/** Ask who it is; then() is called when that is known. */
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
    ? ["Have an account? ", button("Sign in", () => showSignIn(main, then), { class: "plain" })]
    : ["New here? ", button("Register", () => showSignIn(main, then, { registering: true }), { class: "plain" })];
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, registering ? "Register" : "Sign in"),
      form({ fields: who, submit: registering ? "Register" : "Sign in", onSubmit: registering ? register : signIn }),
      OPEN
        ? el("p", {}, ...other)
        : el(
            "p",
            { class: "quiet" },
            "Accounts are made by whoever runs this server, with `everput init --email ADDRESS`.",
          ),
    ),
  );
  main.querySelector("input").focus();
}

/** Who is signed in, and where they act: false when nobody is (Problem). */
export async function findSession() {
  try {
    session.account = (await ask("getSession")).body.account;
  } catch (error) {
    if (error.status === 401) return false;
    throw error;
  }
  session.organizations = (await ask("listOrganizations")).body.organizations;
  const chosen = stored();
  session.organization = session.organizations.find((one) => one.id === chosen) || session.organizations[0] || null;
  return true;
}

export function chooseOrganization(id) {
  session.organization = session.organizations.find((one) => one.id === id) || null;
  try {
    sessionStorage.setItem(CHOSEN, id);
  } catch {
    // a browser that stores nothing forgets it at the next visit
  }
}

function stored() {
  try {
    return sessionStorage.getItem(CHOSEN);
  } catch {
    return null;
  }
}

/** The view in which the password is changed. */
export function showPassword({ main }) {
  const field = (name, label, autocomplete) => ({ name, label, type: "password", required: true, autocomplete });
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, "Change the password"),
      el("p", {}, `Of ${session.account.email}. Wherever else you are signed in, you are signed out.`),
      form({
        fields: [
          field("password", "Password until now", "current-password"),
          field("new_password", "New password", "new-password"),
        ],
        submit: "Change it",
        onSubmit: async (body) => {
          await ask("changePassword", { body });
          location.hash = hash("queues");
          notice("The password is changed.");
        },
      }),
    ),
  );
}

/** The view in which an organization is made. */
export function showNewOrganization({ main, changed }) {
  const first = session.organizations.length === 0;
  main.replaceChildren(
    el(
      "section",
      { class: "panel narrow" },
      el("h1", { tabindex: "-1" }, first ? "Your organization" : "A new organization"),
      el("p", {}, "Queues, listeners, messages and keys belong to an organization. What it is called is up to you."),
      form({
        fields: [{ name: "name", label: "Name", required: true, maxlength: 200 }],
        submit: "Make it",
        onSubmit: async (body) => {
          const made = (await ask("createOrganization", { body })).body.organization;
          session.organizations.push(made);
          chooseOrganization(made.id);
          changed();
          location.hash = hash("queues");
        },
      }),
    ),
  );
}
