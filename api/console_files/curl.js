// A put of a message as a curl command, and copying texts.

import { button, codeBlock, dialog, el, notice } from "./dom.js";

const ARGUMENT_CHARS_MAX = 100_000; // Linux takes at most 128 KiB in one argument

/** Return a command for a shell that puts a message {data, name, key, deliver_at} on the queue with this ID. */
export function curlText(queueId, message) {
  const body = { data: message.data };
  for (const name of ["name", "key", "deliver_at"]) if (message[name]) body[name] = message[name];
  const json = quoted(plain(JSON.stringify(body)));
  const url = new URL(`v1/queues/${encodeURIComponent(queueId)}/messages`, document.baseURI);
  const long = json.length > ARGUMENT_CHARS_MAX;
  return [
    `${long ? `printf %s ${json} | ` : ""}curl -X PUT ${quoted(url.href)}`,
    '  -H "X-API-KEY: $EVERPUT_API_KEY"',
    "  -H 'Content-Type: application/json'",
    `  --data-binary ${long ? "@-" : json}`,
  ].join(" \\\n");
}

function quoted(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** Replace what a terminal would obey or hide by escapes of JSON. */
function plain(json) {
  const escaped = (char) => [...Array(char.length)].map((_, at) => `\\u${char.charCodeAt(at).toString(16).padStart(4, "0")}`).join("");
  return json.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, escaped);
}

/** Copy a text, and say so. Where the browser offers no clipboard, as over plain http, show the text. */
export async function copyText(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    notice(`${what} copied.`);
  } catch {
    dialog(`Copy ${what.toLowerCase()}`, (close) =>
      el("div", {}, codeBlock(text, what), el("div", { class: "row" }, button("Close", () => close(), { class: "primary" }))),
    );
  }
}
