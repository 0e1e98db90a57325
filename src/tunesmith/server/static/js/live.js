// A job's events, through whatever happens to the connection: a server that restarts, a laptop that slept, a session
// that ended. The browser's own EventSource comes back by itself with `Last-Event-ID`; where it gives up, we start it
// anew after the last number, waiting longer each time.

import { at } from "./console.js";

const LONGEST_WAIT = 30_000, CHECK_EVERY = 5_000, SLEPT = 20_000;

// onEvent(event), onLost(), onFound(), onSignedOut(), onSlept(): may have missed much.
export function follow(url, after, { onEvent, onEnd = () => {}, onLost = () => {}, onFound = () => {}, onSignedOut = () => {}, onSlept = () => {} }) {
  let source = null, last = after, wait = 1000, isOver = false, isLost = false;

  function open() {
    if (isOver) return;
    source?.close();
    source = new EventSource(`${url}${url.includes("?") ? "&" : "?"}after=${last}`);
    source.onopen = () => { wait = 1000; if (isLost) { isLost = false; onFound(); } };
    source.onmessage = (message) => { last = Number(message.lastEventId); onEvent(JSON.parse(message.data)); };
    source.addEventListener("end", () => { isOver = true; source.close(); onEnd(); });
    source.onerror = lost;
  }

  async function lost() {
    if (isOver) return;
    if (!isLost) { isLost = true; onLost(); }
    if (source.readyState !== EventSource.CLOSED) return;  // the browser tries by itself
    try {
      const answer = await fetch(at("/api/jobs?limit=1"));
      if (answer.status === 401) { isOver = true; onSignedOut(); return; }
    } catch { /* no server yet */ }
    setTimeout(open, wait);
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }

  // timers stand still while a machine sleeps, and its connections may be dead without anybody knowing
  let checked = Date.now();
  setInterval(() => {
    const passed = Date.now() - checked;
    checked = Date.now();
    if (passed > CHECK_EVERY + SLEPT && !isOver) { onSlept(); open(); }
  }, CHECK_EVERY);
  addEventListener("online", () => isLost && open());
  open();
  return { close() { isOver = true; source?.close(); } };
}
