// Follows a log while its box is checked; whoever scrolls up reads in peace.

const box = document.querySelector("[data-follow]");
const lines = () => document.querySelector("#log-lines");
const isAtEnd = () => lines().scrollHeight - lines().scrollTop - lines().clientHeight < 40;
const toEnd = () => { lines().scrollTop = lines().scrollHeight; };
toEnd();
if (box) {
  document.querySelector("[data-follow-label]").hidden = false;
  setInterval(() => { if (box.checked && !document.hidden && isAtEnd()) htmx.trigger("#log-search", "submit"); }, 2000);
  document.addEventListener("htmx:after:swap", () => { if (box.checked) toEnd(); });
}
