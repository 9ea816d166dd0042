// Light and dark: the system decides until someone presses the button; the choice is kept in this browser.
const KEY = "aig-lights";
const kept = (() => { try { return localStorage.getItem(KEY); } catch { return null; } })();
if (kept && !new URLSearchParams(location.search).has("__theme")) document.body.classList.toggle("dark", kept === "dark");
element.addEventListener("click", (event) => {
  if (!event.target.closest(".lights")) return;
  const dark = document.body.classList.toggle("dark");
  try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window: the choice lasts for this page */ }
});

// Presenter mode: one class on the body, full screen where that is allowed. Escape leaves.
const button = element.querySelector(".presenter-switch");
const presenting = () => document.body.classList.contains("presenter");
const nameSchedule = () => { element.querySelector(".schedule-name").textContent = document.querySelector("#schedule input[type=text]")?.value ?? ""; };
const present = (on) => {
  document.body.classList.toggle("presenter", on);
  button.setAttribute("aria-pressed", on);
  nameSchedule();
  scrollTo(0, 0);
  if (on) document.documentElement.requestFullscreen?.().catch(() => {}); // refused in some frames; the page is large all the same
  else if (document.fullscreenElement) document.exitFullscreen().catch(() => {});
};
button.addEventListener("click", () => present(!presenting()));
let filled = false; // Escape leaves a full screen by itself, without a key event
document.addEventListener("fullscreenchange", () => {
  if (filled && !document.fullscreenElement && presenting()) present(false);
  filled = Boolean(document.fullscreenElement);
});
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.key === "Escape" && presenting()) present(false);
  const typing = event.target.closest?.("textarea, select, [contenteditable], input:not([type=range], [type=radio], [type=checkbox], [type=button])");
  if (event.key.toLowerCase() === "p" && !typing) { event.preventDefault(); present(!presenting()); }
});
document.addEventListener("click", (event) => { if (event.target.closest("#run")) nameSchedule(); });
