// The same words to two models, side by side: each pane has its own conversation; both stream at once.
import { stream, words } from "./stream.js";

const root = document.querySelector("#try");
if (root) {
  const told = JSON.parse(root.dataset.words);
  const part = (name) => root.querySelector(`[data-${name}]`);
  const panes = [...root.querySelectorAll("[data-pane]")].map((element) => ({
    element, talk: element.querySelector("[data-talk]"), speed: element.querySelector("[data-speed]"),
    choice: element.querySelector("select"), name: element.querySelector("[data-model-name]")?.textContent,
    kind: root.dataset.kind, turns: [],
  }));
  const form = part("ask"), text = part("text"), send = part("send"), stop = part("stop");
  let running = null;
  root.hidden = false;

  function bubble(pane, kind, content = "") {
    const element = document.createElement("div");
    element.className = `bubble ${kind}`;
    element.textContent = content;
    const wasAtEnd = pane.talk.scrollHeight - pane.talk.scrollTop - pane.talk.clientHeight < 60;
    pane.talk.append(element);
    if (wasAtEnd || kind === "user") pane.talk.scrollTop = pane.talk.scrollHeight;
    return element;
  }

  function note(element, content) {
    const small = document.createElement("small");
    small.textContent = content;
    element.append(small);
  }

  async function ask(pane, content, signal) {
    bubble(pane, "user", content);
    const answer = bubble(pane, "assistant pending");
    const shown = document.createTextNode("");
    answer.append(shown);
    const model = pane.choice?.value ?? pane.name;
    const common = { model, stream: true, temperature: Number(part("temperature").value), max_tokens: Number(part("tokens").value) };
    const system = part("system").value.trim();
    const turns = [...pane.turns, { role: "user", content }];
    const [path, body] = pane.kind === "chat"
      ? ["/v1/chat/completions", { ...common, messages: system ? [{ role: "system", content: system }, ...turns] : turns }]
      : ["/v1/completions", { ...common, prompt: content }];
    const waiting = setTimeout(() => { pane.speed.textContent = told.loading; }, 1500);
    let pieces = 0, first = 0, reason = null;
    try {
      for await (const chunk of stream(path, body, signal)) {
        for (const choice of chunk.choices) {
          const piece = choice.text ?? choice.delta?.content ?? "";
          if (piece) {
            clearTimeout(waiting);
            pieces += 1;
            first ||= performance.now();
            const wasAtEnd = pane.talk.scrollHeight - pane.talk.scrollTop - pane.talk.clientHeight < 60;
            shown.data += piece;
            if (wasAtEnd) pane.talk.scrollTop = pane.talk.scrollHeight;
          }
          reason = choice.finish_reason ?? reason;
        }
      }
      if (reason === "length") note(answer, told.length);
      if (pane.kind === "chat") pane.turns = [...turns, { role: "assistant", content: shown.data }];
    } catch (error) {
      if (error.name === "AbortError") note(answer, told.stopped);
      else fail(pane, answer, error, content);
    } finally {
      clearTimeout(waiting);
      answer.classList.remove("pending");
      const seconds = (performance.now() - first) / 1000;
      pane.speed.textContent = pieces > 3 && seconds > 0 ? `${Math.round(pieces / seconds)} tokens/s` : "";
    }
  }

  function fail(pane, answer, error, content) {
    if (!answer.textContent) answer.remove();
    const element = bubble(pane, "error", told.failed + words(error, told.lost));
    if (error.code !== "CHAT_NOT_OFFERED") return;
    const instead = document.createElement("button");
    instead.type = "button";
    instead.className = "small";
    instead.textContent = told.complete;
    instead.addEventListener("click", () => { instead.remove(); pane.kind = "text"; run(content, [pane]); });
    element.append(document.createElement("br"), instead);
  }

  async function run(content, which) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    stop.hidden = false;
    send.disabled = true;
    await Promise.all(which.map((pane) => ask(pane, content, signal)));
    if (running?.signal === signal) running = null;
    stop.hidden = true;
    send.disabled = false;
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const content = text.value;
    if (!content.trim() || running) return;
    text.value = "";
    run(content, panes);
    text.focus();
  });
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); form.requestSubmit(); }
  });
  root.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
  stop.addEventListener("click", () => running?.abort());
  const begin = (which) => { running?.abort(); for (const pane of which) { pane.turns = []; pane.talk.replaceChildren(); pane.kind = root.dataset.kind; pane.speed.textContent = ""; } };
  part("new").addEventListener("click", () => { begin(panes); text.focus(); });
  for (const pane of panes) pane.choice?.addEventListener("change", () => begin([pane]));
  for (const button of root.querySelectorAll("[data-prompt]")) button.addEventListener("click", () => { text.value = button.dataset.prompt; text.focus(); });
}
