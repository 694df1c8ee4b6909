// Sentences about the events of the log. Not for: how they are shown (log.js).

import { count, eventWords, shortened } from "./words.js";

/** The kinds of events that can be chosen: [types as the API takes them, name]. */
export const KINDS = [
  ["message", "Messages"],
  ["delivery,deliveries,answers", "Deliveries"],
  ["queue", "Queues"],
  ["listener", "Listeners"],
  ["replay", "Replays"],
  ["key", "API keys"],
  ["organization,invitation", "Organization and members"],
  ["alert", "Alerts"],
];

/**
 * Return the names of things by ID: {name, actor, isKnown, listenerOf, learn}. An unknown ID is shortened.
 * learn(event): takes the name from a listener.created or replay.started event. listenerOf(replayId): the name of a
 * replay's listener, or undefined.
 */
export function namesOf(queues, keys, members) {
  const known = new Map([...queues, ...queues.flatMap((one) => one.listeners), ...keys].map((one) => [one.id, one.name]));
  const replayed = new Map();
  for (const one of members) known.set(one.id, one.email);
  const name = (id) => known.get(id) || (id ? shortened(id, 13) : "?");
  return {
    name,
    actor(text) {
      const [kind, id] = (text || "").split(":");
      if (kind === "key") return `key ${name(id)}`;
      if (kind === "account") return name(id);
      return kind === "worker" ? "" : kind;
    },
    isKnown: (id) => known.has(id),
    listenerOf: (replayId) => replayed.get(replayId),
    learn(event) {
      if (event.type === "listener.created" && !known.has(event.listener_id)) known.set(event.listener_id, event.name);
      if (event.type !== "replay.started") return;
      replayed.set(event.replay_id, name(event.listener_id));
      known.set(event.replay_id, `${name(event.listener_id)} (replay${event.notify_url ? " to another URL" : ""})`);
    },
  };
}

// What is said of an event, by its type. q, l: the names of its queue and listener. to: the listener of its replay, if it
// is known.
const SENTENCES = {
  "message.put": ({ q, event }) => `Message ${event.name || ""} put on ${q}`,
  "message.updated": ({ q }) => `Message on ${q} updated`,
  "message.deleted": ({ q }) => `Message on ${q} deleted`,
  "change.applied": ({ q, event }) => `Change of a message on ${q} ${event.applied === false ? "did not count" : "applied"}`,
  "deliveries.settled": ({ l, event }) => `${count(event.rows.length, "message")} delivered to ${l}`,
  "delivery.attempted": ({ l, event }) => `Attempt ${event.number} to ${l} ${outcome(event)}`,
  "answers.kept": ({ l, event }) => `Answers of ${l} to ${count(event.attempts.length, "failed attempt")} kept`,
  "queue.created": ({ event }) => `Queue ${event.name} created`,
  "queue.renamed": ({ event }) => `Queue renamed to ${event.name}`,
  "queue.deleted": ({ q }) => `Queue ${q} deleted`,
  "queue.alerts_set": ({ q }) => `Alert thresholds of queue ${q} changed`,
  "listener.created": ({ q, event }) => `Listener ${event.name} of ${q} created`,
  "listener.updated": ({ l }) => `Listener ${l} changed`,
  "listener.paused": ({ l, event }) => `Listener ${l} paused: ${event.reason}`,
  "listener.resumed": ({ l }) => `Listener ${l} resumed`,
  "listener.deleted": ({ l }) => `Listener ${l} deleted`,
  "listener.redriven": ({ l, event }) =>
    event.message_ids.length ? `${count(event.message_ids.length, "delivery", "deliveries")} of ${l} retried` : `All deliveries of ${l} retried`,
  "listener.redrives_cancelled": ({ l }) => `Retries of ${l} cancelled`,
  "listener.secret_rotated": ({ l }) => `Signing secret of ${l} rotated`,
  "key.created": ({ event }) => `API key ${event.name} created`,
  "key.revoked": ({ names, event }) => `API key ${names.name(event.key_id)} revoked`,
  "key.used": ({ names, event }) => `API key ${names.name(event.key_id)} used`,
  "replay.started": ({ l, event }) => `Replay of ${count(event.count, "message")} to ${l} started`,
  "replay.advanced": ({ to }) => `Replay${to} finished some partitions`,
  "replay.paused": ({ to }) => `Replay${to} paused`,
  "replay.resumed": ({ to }) => `Replay${to} resumed`,
  "replay.cancelled": ({ to }) => `Replay${to} cancelled`,
  "organization.created": ({ event }) => `Organization ${event.name} created`,
  "organization.joined": ({ names, event }) => `${names.name(event.account_id)} joined`,
  "organization.left": ({ names, event }) => `${names.name(event.account_id)} left`,
  "invitation.created": ({ event }) => `${event.email} invited`,
  "invitation.accepted": ({ names, event }) => `${names.name(event.account_id)} accepted an invitation`,
  "invitation.revoked": () => "Invitation revoked",
  "alert.raised": ({ l, event }) => `Alert ${event.alert} for ${l}`,
  "alert.cleared": ({ event }) => `Alert ${event.alert || ""} is over`,
};

/** Say in one line what happened. */
export function eventSentence(event, names) {
  const said = SENTENCES[event.type];
  const listener = names.listenerOf(event.replay_id);
  const to = listener ? ` to ${listener}` : "";
  try {
    if (said) return said({ event, names, to, q: names.name(event.queue_id), l: names.name(event.listener_id) });
  } catch {
    // An event of another version lacks a field: its fields are listed.
  }
  return eventWords(event) || event.type;
}

function outcome({ outcome: word, status, error }) {
  const answer = status === null || status === undefined ? error || "no answer" : `HTTP ${status}`;
  return word === "delivered" ? `delivered (${answer})` : `${word === "parked" ? "failed, parked" : "failed"} (${answer})`;
}
