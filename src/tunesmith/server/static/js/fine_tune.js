// The Fine Tune form: tabs, uploads with progress, and the fields that only some choices need. The plan itself is htmx's.

import { at } from "./console.js";
import { takeFiles } from "./upload.js";

const form = document.querySelector("#fine-tune");

// ---- tabs
const tabs = [...form.querySelectorAll('[role="tab"]')];
function select(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    document.querySelector(`#${each.getAttribute("aria-controls")}`).hidden = each !== tab;
  }
}
for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    select(next);
    next.focus();
  });
}

async function choose(url) {
  await htmx.ajax("GET", url, { target: "#datasets", swap: "outerHTML" });
  chosen();
}

function chosen() {
  select(tabs[0]);
  htmx.trigger(form, "plan");
}

takeFiles(form, { columns: () => form.elements.columns.value.trim(), added: (id) => choose(at(`/fine-tune/datasets?chosen=${encodeURIComponent(id)}`)) });

// an object of a location, or the example, was taken: the list of datasets came anew with it chosen. Told by the request:
// the example's button is gone with the list that it stood in
document.addEventListener("htmx:after:swap", (event) => {
  if (/\/fine-tune\/(register|example)$/.test(event.detail.ctx?.request?.action ?? "")) chosen();
});

// ---- fields that some choices need
function show() {
  form.querySelector("[data-when-replicas]").hidden = !(Number(form.elements.replicas.value) > 1);
  form.querySelector("[data-when-located]").hidden = !form.elements.results_location.value;
}
form.addEventListener("input", show);
form.addEventListener("change", show);
show();

// ---- the field that a refusal names
function mark(name) {
  for (const each of form.querySelectorAll("[aria-invalid]")) each.removeAttribute("aria-invalid");
  const field = name && form.elements[name];
  if (!field?.setAttribute || field.type === "hidden") return;
  field.setAttribute("aria-invalid", "true");
  field.closest("details")?.setAttribute("open", "");
}
document.addEventListener("htmx:after:swap", () => mark(document.querySelector("#plan").dataset.field));
mark(form.dataset.field);
