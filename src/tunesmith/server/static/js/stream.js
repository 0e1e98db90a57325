// A POST to our own service whose answer comes in pieces: server-sent events, read from a fetch.
import { at, csrf } from "./console.js";

/** Yields each event's data as JSON. Throws an object {code, message, hint} for a refusal, and fetch's own errors. */
export async function* stream(path, body, signal) {
  const answer = await fetch(at(path), {
    method: "POST", signal, body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", Accept: "text/event-stream", "X-CSRF-Token": csrf() },
  });
  if (!answer.ok) {
    let told = null;
    try { told = (await answer.json()).error; } catch { /* no answer of ours: a proxy's page, say */ }
    throw told ?? { code: "HTTP", message: `${answer.status} ${answer.statusText}` };
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const data = lines.filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]" || lines.includes("event: end")) continue;
      const told = JSON.parse(data);
      if (told.error && !told.kind) throw told.error;
      yield told;
    }
  }
}

/** What a refusal says, with its way out. */
export const words = (error, lost) => {
  if (error instanceof TypeError) return lost;  // fetch: the network
  return [error.message, error.hint].filter(Boolean).join(" ");
};
