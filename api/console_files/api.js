// The REST API as the console uses it: with the session's cookie, in one organization.
//
// For: which operations there are, requests, problems. Not for: what is shown of an answer (the views), words (words.js).

// As in /v1/openapi.json, by operationId; a test compares the two.
const OPERATIONS = {
  createAccount: ["PUT", "/v1/accounts"],
  changePassword: ["POST", "/v1/accounts/password"],
  startSession: ["POST", "/v1/sessions"],
  getSession: ["GET", "/v1/sessions"],
  endSession: ["DELETE", "/v1/sessions"],
  listOrganizations: ["GET", "/v1/organizations"],
  createOrganization: ["PUT", "/v1/organizations"],
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
  replayToListener: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replay"],
  listReplays: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/replays"],
  getReplay: ["GET", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}"],
  cancelReplay: ["DELETE", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}"],
  pauseReplay: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}/pause"],
  resumeReplay: ["POST", "/v1/queues/{queue_id}/listeners/{listener_id}/replays/{replay_id}/resume"],
  listMessages: ["GET", "/v1/queues/{queue_id}/messages"],
  putMessage: ["PUT", "/v1/queues/{queue_id}/messages"],
  getMessage: ["GET", "/v1/queues/{queue_id}/messages/{message_id}"],
  updateMessage: ["PUT", "/v1/queues/{queue_id}/messages/{message_id}"],
  deleteMessage: ["DELETE", "/v1/queues/{queue_id}/messages/{message_id}"],
  readLog: ["GET", "/v1/log"],
};

/** What went wrong, as the server says it (RFC 9457). status 0: there was no answer. */
class Problem extends Error {
  constructor(status, fields = {}, retryAfterS = null) {
    super(fields.detail || fields.title || `The server answered ${status}.`);
    this.status = status;
    this.errors = fields.errors || [];
    this.retryAfterS = retryAfterS;
  }
}

/** Who is signed in and where they act; ids and names only. */
export const session = { account: null, organizations: [], organization: null };

/**
 * The answer of an operation: {body, etag}; of one that answers lines, the body is their array (Problem).
 * ids: for the path. ifMatch: change only what this was the tag of. once: an Idempotency-Key.
 */
export async function ask(name, { ids = {}, query = {}, body, ifMatch, once, signal } = {}) {
  const [method, path] = OPERATIONS[name];
  const filled = path.replace(/{(\w+)}/g, (_, id) => encodeURIComponent(ids[id]));
  const url = new URL(filled.slice(1), document.baseURI); // beside the page, wherever a proxy has put it
  for (const [key, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(key, value);
  }
  const headers = {};
  if (session.organization) headers["Everput-Organization"] = session.organization.id;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (ifMatch) headers["If-Match"] = ifMatch;
  if (once) headers["Idempotency-Key"] = once;
  let answer;
  let text;
  try {
    answer = await fetch(url, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal,
    });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The server can't be reached." });
  }
  if (answer.ok) {
    const lines = answer.headers.get("content-type") === "application/x-ndjson";
    return {
      body: lines ? text.split("\n").filter(Boolean).map(JSON.parse) : JSON.parse(text),
      etag: answer.headers.get("etag"),
    };
  }
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

/** The cursor of the page after this one, null on the last. */
export function nextCursor(body) {
  const next = body._links && body._links.next;
  return next ? new URL(next.href).searchParams.get("cursor") : null;
}

/** A new Idempotency-Key. (crypto.randomUUID is there by https only.) */
export function newKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
