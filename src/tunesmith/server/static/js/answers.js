// Answers of several models to the same prompts, a table each, filled while they come.
import { stream, words } from "./stream.js";

const card = document.querySelector("#answers-card");
const form = card?.querySelector("[data-answers]");
if (form) {
  const told = JSON.parse(card.dataset.words), wanted = JSON.parse(card.dataset.wanted);
  const all = JSON.parse(card.dataset.models);
  const run = form.querySelector("[data-run]"), stop = form.querySelector("[data-stop]"), place = card.querySelector("[data-table]");
  let running = null;
  form.hidden = false;

  function cell(row, kind, content) {
    const element = document.createElement(kind);
    element.textContent = content;
    row.append(element);
    return element;
  }

  function table(models, prompts) {
    place.replaceChildren();
    return prompts.map((prompt) => {
      const box = document.createElement("div"), element = document.createElement("table");
      box.className = "table";
      element.className = "answers";
      const caption = element.createCaption();
      caption.textContent = prompt.text;
      const head = element.createTHead().insertRow(), body = element.createTBody().insertRow();
      if (prompt.wanted !== undefined) { cell(head, "th", told.wanted); cell(body, "td", prompt.wanted); }
      const cells = models.map((model) => { cell(head, "th", model).scope = "col"; return cell(body, "td", ""); });
      box.append(element);
      place.append(box);
      return cells;
    });
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    const fields = [...form.querySelectorAll("textarea")];
    const prompts = fields.map((field, at) => ({ text: field.value, wanted: field.value === field.defaultValue ? wanted[at] : undefined })).filter((prompt) => prompt.text.trim());
    if (!prompts.length) { fields[0].focus(); return; }
    const hasBase = form.querySelector("[data-base]").checked;
    const models = hasBase ? all : all.filter((name) => name.includes(":"));
    const cells = table(models, prompts);
    running = new AbortController();
    stop.hidden = false;
    run.disabled = true;
    const body = { models, prompts: prompts.map((prompt) => prompt.text), max_tokens: Number(form.querySelector("[data-tokens]").value) };
    try {
      for await (const piece of stream("/api/answers", body, running.signal)) {
        const into = cells[piece.prompt][piece.model];
        if (piece.kind === "started") into.classList.add("pending");
        if (piece.kind === "piece") into.append(piece.text);
        if (piece.kind === "failed") { into.classList.add("failed"); into.append(told.failed + words(piece.error, told.lost)); }
        if (piece.kind === "done" || piece.kind === "failed") into.classList.remove("pending");
        if (piece.finish_reason === "length") into.title = told.length;
      }
    } catch (error) {
      const element = document.createElement("p");
      element.className = "notice bad";
      element.textContent = error.name === "AbortError" ? told.stopped : told.failed + words(error, told.lost);
      place.append(element);
    } finally {
      place.querySelectorAll(".pending").forEach((element) => element.classList.remove("pending"));
      running = null;
      stop.hidden = true;
      run.disabled = false;
    }
  });
  stop.addEventListener("click", () => running?.abort());
  form.querySelector("[data-add]").addEventListener("click", (event) => {
    const label = form.querySelector("label:has(textarea)").cloneNode(true);
    const number = form.querySelectorAll("textarea").length + 1;
    if (number > 16) return;
    label.firstChild.data = label.firstChild.data.replace(/\d+/, number);
    const field = label.querySelector("textarea");
    field.textContent = "";
    field.value = "";
    event.currentTarget.closest(".row").before(label);
    field.focus();
  });
}
