// The client of the REST API. It uses the session's cookie and acts in one organization.
//
// For: the operations, requests, problems. Not for: showing an answer (the views), sentences (words.js).

// As in /v1/openapi.json, by operationId; a test compares the two.
const OPERATIONS = {
  createAccount: ["PUT", "/v1/accounts"],
  changePassword: ["POST", "/v1/accounts/password"],
  unlinkIdentity: ["POST", "/v1/accounts/unlink"],
  askForPasswordReset: ["POST", "/v1/accounts/password-reset"],
  resetPassword: ["PUT", "/v1/accounts/password-reset"],
  startOidc: ["POST", "/v1/sessions/oidc"],
  startSession: ["POST", "/v1/sessions"],
  getSession: ["GET", "/v1/sessions"],
  endSession: ["DELETE", "/v1/sessions"],
  listOrganizations: ["GET", "/v1/organizations"],
  createOrganization: ["PUT", "/v1/organizations"],
  listMembers: ["GET", "/v1/organizations/{organization_id}/members"],
  listInvitations: ["GET", "/v1/organizations/{organization_id}/invitations"],
  changeMember: ["PUT", "/v1/organizations/{organization_id}/members/{account_id}"],
  removeMember: ["DELETE", "/v1/organizations/{organization_id}/members/{account_id}"],
  createInvitation: ["PUT", "/v1/organizations/{organization_id}/invitations"],
  revokeInvitation: ["DELETE", "/v1/organizations/{organization_id}/invitations/{invitation_id}"],
  acceptInvitation: ["POST", "/v1/invitations/accept"],
  registerInvited: ["POST", "/v1/invitations/register"],
  listKeys: ["GET", "/v1/organizations/{organization_id}/keys"],
  createKey: ["PUT", "/v1/organizations/{organization_id}/keys"],
  revokeKey: ["DELETE", "/v1/organizations/{organization_id}/keys/{key_id}"],
  listQueues: ["GET", "/v1/queues"],
  createQueue: ["PUT", "/v1/queues"],
  getQueue: ["GET", "/v1/queues/{queue_id}"],
  renameQueue: ["PUT", "/v1/queues/{queue_id}"],
  deleteQueue: ["DELETE", "/v1/queues/{queue_id}"],
  listListeners: ["GET", "/v1/queues/{queue_id}/listeners"],
  createListener: ["PUT", "/v1/queues/{queue_id}/listeners"],
  getListener: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}"],
  updateListener: ["PUT", "/v1/queues/{queue_id}/listeners/{listener_id}"],
  deleteListener: ["DELETE", "/v1/queues/{queue_id}/listeners/{listener_id}"],
  pauseListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/pause"],
  resumeListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/resume"],
  testListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/test"],
  getSecret: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/secret"],
  rotateSecret: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/secret/rotate"],
  listDeliveries: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/deliveries"],
  redriveListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/redrive"],
  cancelRedrives: ["DELETE", "/v1/queues/{queue_id}/listeners/{listener_id}/redrive"],
  replayToListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replay"],
  listReplays: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/replays"],
  cancelReplay: ["DELETE", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}"],
  pauseReplay: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}/pause"],
  resumeReplay: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}/resume"],
  listMessages: ["GET", "/v1/queues/{queue_id}/messages"],
  putMessage: ["PUT", "/v1/queues/{queue_id}/messages"],
  getMessage: ["GET", "/v1/queues/{queue_id}/messages/{message_id}"],
  updateMessage: ["PUT", "/v1/queues/{queue_id}/messages/{message_id}"],
  deleteMessage: ["DELETE", "/v1/queues/{queue_id}/messages/{message_id}"],
  getOverview: ["GET", "/v1/overview"],
  getQueueStatistics: ["GET", "/v1/queues/{queue_id}/statistics"],
  getListenerStatistics: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/statistics"],
  readLog: ["GET", "/v1/log"],
  watchChanges: ["GET", "/v1/changes"],
};

// The scopes that a member's role needs for the operations behind buttons and pages; a test compares them with the API's.
const SCOPES = {
  getOverview: "queues:read",
  listQueues: "queues:read",
  createQueue: "queues",
  renameQueue: "queues",
  deleteQueue: "queues",
  createListener: "queues",
  updateListener: "queues",
  deleteListener: "queues",
  getSecret: "queues",
  pauseListener: "queues:operate",
  resumeListener: "queues:operate",
  testListener: "queues:operate",
  redriveListener: "queues:operate",
  cancelRedrives: "queues:operate",
  replayToListener: "queues:operate",
  pauseReplay: "queues:operate",
  cancelReplay: "queues:operate",
  getMessage: "messages:read",
  putMessage: "messages:put",
  updateMessage: "messages",
  deleteMessage: "messages",
  listKeys: "keys",
  createKey: "keys",
  readLog: "audit",
  createInvitation: "members",
};

/** Return why the signed-in member's role may not use an operation, as a sentence; empty if it may. */
export function whyNot(name) {
  const { role, scopes } = session.organization || {};
  const scope = SCOPES[name];
  if (!scopes || scopes.includes(scope) || scopes.includes(scope.split(":")[0])) return "";
  return `Your role, ${role}, lacks the scope ${scope}. Ask an owner of the organization.`;
}

/** An error that the server reported (RFC 9457). status: 0 if there was no answer. */
class Problem extends Error {
  constructor(status, fields = {}, retryAfterS = null) {
    super(fields.detail || fields.title || `The server answered ${status}.`);
    this.status = status;
    this.errors = fields.errors || [];
    this.retryAfterS = retryAfterS;
  }
}

/** The signed-in account and its organizations; ids and names only. */
export const session = { account: null, organizations: [], organization: null };

/**
 * Call an operation; resolves to {body, etag}. The body of an answer in lines is an array of them. Throws Problem.
 * ids: fill the path. ifMatch: an ETag; the change is refused if the resource has another. once: an Idempotency-Key.
 * keepalive: the request goes on if the page is left.
 */
export async function ask(name, { ids = {}, query = {}, body, ifMatch, once, signal, keepalive = false, organization = session.organization } = {}) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (ifMatch) headers["If-Match"] = ifMatch;
  if (once) headers["Idempotency-Key"] = once;
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const { answer, text } = await send(name, { ids, query, headers, body: sent, signal, keepalive, organization }, (made) => made.text());
  const lines = answer.headers.get("content-type") === "application/x-ndjson";
  return {
    body: lines ? text.split("\n").filter(Boolean).map(JSON.parse) : JSON.parse(text),
    etag: answer.headers.get("etag"),
  };
}

/**
 * Read an operation's server-sent events; resolves when the stream ends. Throws Problem.
 * lastId: the id of the last event that was taken. take({id, data}): called with each event.
 */
export async function follow(name, { lastId, signal, take }) {
  const headers = lastId ? { "Last-Event-ID": lastId } : {};
  await send(name, { headers, signal }, async (answer) => {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part; !(part = await reader.read()).done; ) {
      const events = `${rest}${part.value}`.split("\n\n");
      rest = events.pop();
      for (const text of events) {
        const fields = Object.fromEntries(text.split("\n").map((line) => [line.split(": ", 1)[0], line.slice(line.indexOf(": ") + 2)]));
        if (fields.data) take(fields);
      }
    }
  });
}

/** Send a request and read its answer: {answer, text}. read(answer): reads the body of a good answer. Throws Problem. */
async function send(name, { ids = {}, query = {}, headers, body, signal, keepalive = false, organization = session.organization }, read) {
  const [method, path] = OPERATIONS[name];
  const filled = path.replace(/{(\w+)}/g, (_, id) => encodeURIComponent(ids[id]));
  const url = new URL(filled.slice(1), document.baseURI); // relative to the page, so that a proxy may add a path
  for (const [key, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(key, value);
  }
  if (organization) headers = { "Everput-Organization": organization.id, ...headers };
  let answer;
  let text;
  try {
    answer = await fetch(url, { method, headers, body, credentials: "same-origin", cache: "no-store", keepalive, signal });
    text = answer.ok ? await read(answer) : await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server can't be reached. Check that it is running and that you are online." });
  }
  if (answer.ok) return { answer, text };
  if (answer.status === 401 && name !== "startSession" && name !== "getSession") {
    window.dispatchEvent(new Event("signed-out"));
  }
  throw new Problem(answer.status, parsed(text), Number(answer.headers.get("retry-after")) || null);
}

function parsed(text) {
  try {
    return JSON.parse(text) || {};
  } catch {
    return {};
  }
}

/** Open the WebSocket that makes this page a listener of a queue (api/tunnel.py). */
export function socketOf(queueId, name) {
  const url = new URL(`v1/queues/${encodeURIComponent(queueId)}/listen`, document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  url.searchParams.set("name", name);
  url.searchParams.set("organization", session.organization.id);
  return new WebSocket(url);
}

/** Load the samples that put a message: [label, source] each, with this server's URL, a key and a queue filled in. */
export async function putSamples({ key, queueId }) {
  const answer = await fetch(new URL("console/samples.json", document.baseURI));
  if (!answer.ok) throw new Problem(answer.status);
  const { server, key: keyHere, queue_id: queueHere, samples } = await answer.json();
  const base = new URL(".", document.baseURI).href.replace(/\/$/, "").replaceAll("'", "%27");
  const filled = (text) => text.replaceAll(server, base).replaceAll(keyHere, key).replaceAll(queueHere, queueId);
  return samples.map(({ label, source }) => [label, filled(source)]);
}

/** Return the cursor of the next page; null on the last page. */
export function nextCursor(body) {
  const next = body._links && body._links.next;
  return next ? new URL(next.href).searchParams.get("cursor") : null;
}

/** Create an Idempotency-Key. (Browsers offer crypto.randomUUID over https only.) */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
