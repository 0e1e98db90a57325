// A file to `/api/datasets`, from a place to drop it (`drop` of templates/datasets/parts.html), with progress and findings.
// fetch tells no progress of what it sends, XMLHttpRequest does.

import { at, csrf } from "./console.js";

// within: the element around it. columns: what the file's columns are called, or "". added: told the new dataset's id.
export function takeFiles(within, { columns, added }) {
  const uploading = within.querySelector("[data-uploading]"), fault = within.querySelector("[data-upload-fault]");
  const bar = uploading.querySelector("progress"), text = uploading.querySelector("[data-upload-text]"), share = uploading.querySelector("[data-upload-share]");
  const say = (what, name) => { text.textContent = uploading.dataset[what].replace("{name}", name); };

  function upload(file) {
    fault.hidden = true;
    uploading.hidden = false;
    bar.value = 0;
    say("sending", file.name);
    const query = new URLSearchParams({ filename: file.name.slice(-255), ...(columns() ? { columns: columns() } : {}) });
    const request = new XMLHttpRequest();
    request.open("POST", at(`/api/datasets?${query}`));
    request.setRequestHeader("Content-Type", "application/octet-stream");
    request.setRequestHeader("X-CSRF-Token", csrf());
    request.upload.addEventListener("progress", (event) => {
      bar.value = event.loaded / event.total;
      share.textContent = `${Math.floor((100 * event.loaded) / event.total)}%`;
      if (event.loaded === event.total) say("checking", file.name);
    });
    request.addEventListener("error", () => refused(uploading.dataset.failed, "", null));
    request.addEventListener("load", () => {
      let answer = null;
      try { answer = JSON.parse(request.responseText); } catch { /* not ours */ }
      if (request.status >= 300 || !answer) { refused(uploading.dataset.refused.replace("{name}", file.name), answer?.error?.message ?? "", answer?.error?.hint); return; }
      uploading.hidden = true;
      added(answer.dataset_id);
    });
    request.send(file);
  }

  function refused(title, message, hint) {
    uploading.hidden = true;
    fault.hidden = false;
    fault.querySelector("[data-upload-title]").textContent = title;
    const list = fault.querySelector("[data-upload-findings]");
    list.replaceChildren();
    for (const finding of message.split(/ (?=line \d+(?:, column \d+)?: )/)) {
      const [, where, what] = finding.match(/^(line \d+(?:, column \d+)?): ([^]*)$/) ?? [null, "", finding];
      if (!where && what.endsWith(":")) continue;  // the file's name, which the title tells
      const item = document.createElement("li"), place = document.createElement("span"), words = document.createElement("span");
      place.className = "where";
      place.textContent = where;
      words.textContent = what;
      item.append(place, words);
      list.append(item);
    }
    fault.querySelector("[data-upload-hint]").textContent = hint ?? "";
  }

  const input = within.querySelector("[data-upload]"), drop = within.querySelector("[data-drop]");
  input.addEventListener("change", (event) => { event.stopPropagation(); if (input.files[0]) upload(input.files[0]); input.value = ""; });
  for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
    drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.toggle("over", isOver); });
  }
  drop.addEventListener("drop", (event) => { if (event.dataTransfer.files[0]) upload(event.dataTransfer.files[0]); });
}
