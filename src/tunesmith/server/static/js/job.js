// A job that is followed, on its page and on that of the model version it makes: live numbers, the word to htmx that parts
// of the page have changed, and the curves of the steps where the page has a place for them.

import { lineChart, format } from "./chart.js";
import { at, toast } from "./console.js";
import { follow } from "./live.js";

const POINTS = 1200;  // more than a chart is wide
const KINDS = "step,epoch,state,phase,attempt,notice,verdict,failure,finished,samples,checkpoint";
const SERIES = ["loss", "learning_rate", "tokens_per_second", "memory_bytes", "gradient_norm"];
const live = () => document.querySelector("#job-live");
const job = live().dataset.job;
const api = at(`/api/jobs/${job}`);

// ---- curves by step
const place = document.querySelector("[data-steps]");
let curves = null, zoom = null;
const stepCharts = new Map();
for (const figure of document.querySelectorAll("[data-series]")) {
  stepCharts.set(figure.dataset.series, lineChart(figure, {
    series: [{ label: figure.dataset.label, colour: "--training" }], xLabel: "Step", valueFormat: figure.dataset.format,
    height: figure.classList.contains("tall") ? 240 : 130, onZoom: zoomTo, sync: "steps",
  }));
}

async function load() {
  if (!place) return;
  const range = zoom ? `&first=${zoom[0]}&last=${zoom[1]}` : "";
  const answer = await fetch(`${api}/curves?points=${POINTS}${range}`);
  if (!answer.ok) return;
  curves = await answer.json();
  draw();
}

function draw() {
  place.hidden = curves.step.length === 0 && !zoom;
  document.querySelector("[data-thinned]").hidden = curves.steps_in_range <= curves.step.length;
  document.querySelector("[data-unzoom]").hidden = zoom === null;
  if (curves.step.length) for (const [name, chart] of stepCharts) chart.set([curves.step, curves[name]]);
}

function zoomTo(low, high) {
  zoom = low === null ? null : [Math.max(1, Math.floor(low)), Math.max(2, Math.ceil(high))];
  load();
}
document.querySelector("[data-unzoom]")?.addEventListener("click", () => zoomTo(null, null));

// ---- numbers that move with each step
function showStep(event) {
  const values = {
    step: event.step.toLocaleString(), steps: event.steps.toLocaleString(), epoch: event.epoch, eta: duration(event.eta_seconds),
    loss: format("loss", event.loss), learning_rate: format("rate", event.learning_rate),
    tokens_per_second: format("short", event.tokens_per_second), memory_bytes: format("bytes", event.memory_bytes),
  };
  for (const [name, text] of Object.entries(values)) {
    const place = document.querySelector(`[data-live="${name}"]`);
    if (place) place.textContent = text;
  }
  const bar = document.querySelector('progress[data-live="progress"]');
  if (bar) { bar.max = event.steps; bar.value = event.step; }
}

function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(Math.round(seconds) % 60).padStart(2, "0")} s`;
  return `${Math.floor(seconds / 3600)} h ${String(Math.floor(seconds / 60) % 60).padStart(2, "0")} min`;
}

function addStep(event) {
  if (!curves || zoom) return;
  let keep = curves.step.length;  // an attempt that was resumed tells some steps again
  while (keep && curves.step[keep - 1] >= event.step) keep -= 1;
  for (const name of ["step", ...SERIES]) { curves[name].length = keep; curves[name].push(event[name]); }
  curves.steps_in_range = Math.max(curves.steps_in_range, event.step);
  if (curves.step.length > 2 * POINTS) { load(); return; }
  draw();
}

// ---- parts of the page, asked for once for what comes in one breath
let asking = null;
function changed() {
  clearTimeout(asking);
  asking = setTimeout(() => htmx.trigger(live(), "changed"), 150);
}

// ---- following
let lostSince = null;
await load();
if (!live().dataset.final) {
  follow(`${api}/events?kinds=${KINDS}`, Number(live().dataset.events), {
    onEvent(event) {
      if (event.kind === "step") {
        const isFirst = !document.querySelector('[data-live="step"]');
        showStep(event);
        addStep(event);
        if (isFirst) changed();
      } else {
        changed();
      }
    },
    onEnd: changed,
    onLost() { lostSince = setTimeout(() => toast(live().dataset.asleep, "warn"), 3000); },
    onFound() { clearTimeout(lostSince); load(); changed(); },
    onSlept() { load(); changed(); },
    onSignedOut() { toast(live().dataset.signedOut, "bad"); },
  });
}
