// What every page has: theme, menu, search key, toasts, copying, confirmations, times, and htmx's CSRF header.
// Words that people read come from the page. A page's own script imports `toast` and `csrf` from here.

export const csrf = () => document.querySelector('meta[name="csrf"]').content;
/** A path of ours as this browser reaches it: a proxy may serve us below one of its own. */
export const at = (path) => (document.documentElement.dataset.prefix || "") + path;

// ---- theme: a cookie, so that the server's first paint has it already
const root = document.documentElement;
const isDark = () => root.dataset.theme === "dark" || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
for (const button of document.querySelectorAll("[data-theme-switch]")) {
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    document.cookie = `tunesmith_theme=${root.dataset.theme}; path=${at("/")}; max-age=31536000; samesite=strict`;
    document.dispatchEvent(new CustomEvent("theme"));
  });
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => document.dispatchEvent(new CustomEvent("theme")));

// ---- tabs wider than the screen begin at the present one
document.querySelector(".tabs [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

// ---- navigation on small screens
const side = document.querySelector(".side");
document.querySelector("[data-menu]")?.addEventListener("click", (event) => {
  const isOpen = side.classList.toggle("open");
  event.currentTarget.setAttribute("aria-expanded", String(isOpen));
  if (isOpen) side.querySelector("a").focus();
});

// ---- keys: "/" searches, Escape closes what is open
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
  if (event.key === "/" && !isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    const box = document.querySelector(".find input");
    if (box) { event.preventDefault(); box.focus(); box.select(); }
  }
  if (event.key === "Escape") side?.classList.remove("open");
});

// ---- toasts
const TOAST_MILLISECONDS = 8000;
export function toast(text, tone = "good") {
  const box = document.createElement("div");
  box.className = `toast ${tone}`;
  const words = document.createElement("div");
  words.textContent = text;
  box.append(words);
  document.querySelector("#toasts").append(box);
  if (tone !== "bad") setTimeout(() => box.remove(), TOAST_MILLISECONDS);
}
document.addEventListener("click", (event) => event.target.closest("[data-dismiss]")?.parentElement.remove());

// ---- copying
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = button.dataset.copy ? document.querySelector(button.dataset.copy) : button.parentElement.querySelector("code, pre");
  await navigator.clipboard.writeText(source.textContent.trim());
  button.classList.add("good-text");
  setTimeout(() => button.classList.remove("good-text"), 1200);
});

// ---- forms: ask first where a page says so; a second press while the first is under way does nothing
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.dataset.confirm && !confirm(form.dataset.confirm)) { event.preventDefault(); return; }
  if (form.method === "post" && !form.hasAttribute("hx-post")) {
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "yes";
    form.querySelector("button:not([type=button])")?.setAttribute("aria-busy", "true");
  }
});
addEventListener("pageshow", () => document.querySelectorAll("form[data-sent]").forEach((form) => {
  delete form.dataset.sent;  // back again, out of the browser's memory
  form.querySelector("[aria-busy]")?.removeAttribute("aria-busy");
}));
document.querySelector("form[data-submit-once]")?.requestSubmit();

// ---- times: local, and relative where they are near
const near = new Intl.RelativeTimeFormat(undefined, { numeric: "auto", style: "short" });
const far = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
const exact = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
export function tellTimes(within = document) {
  for (const each of within.querySelectorAll("time[datetime]")) {
    const then = new Date(each.dateTime), seconds = (then - Date.now()) / 1000;
    each.title = exact.format(then);
    if (each.dataset.exact !== undefined) each.textContent = then.toLocaleTimeString();
    else if (Math.abs(seconds) < 50) each.textContent = near.format(Math.round(seconds), "second");
    else if (Math.abs(seconds) < 3000) each.textContent = near.format(Math.round(seconds / 60), "minute");
    else if (Math.abs(seconds) < 80000) each.textContent = near.format(Math.round(seconds / 3600), "hour");
    else each.textContent = far.format(then);
  }
}
function refresh(within) {
  tellTimes(within);
  for (const button of within.querySelectorAll("[data-copy]")) button.hidden = !navigator.clipboard;
}
refresh(document);
setInterval(() => tellTimes(), 20000);

// ---- htmx: the CSRF header on what changes something, and fresh parts get what the page got
document.addEventListener("htmx:config:request", (event) => {
  const { request } = event.detail.ctx;
  if (request.method.toUpperCase() !== "GET") request.headers["X-CSRF-Token"] = csrf();
});
document.addEventListener("htmx:after:swap", () => refresh(document));
