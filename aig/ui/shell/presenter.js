// Presenter mode: one class on the body, full screen where that is allowed. P enters and leaves, Escape leaves.
import { tell } from "../parts/news.js";

const FIELDS = "textarea, select, [contenteditable], input:not([type=range], [type=radio], [type=checkbox], [type=button])";

export const presenter = (element) => {
  const button = element.querySelector(".presenter-switch");
  const presenting = () => document.body.classList.contains("presenter");
  const present = (on) => {
    document.body.classList.toggle("presenter", on);
    button.setAttribute("aria-pressed", on);
    tell(element, "presenting");
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
    if (event.key.toLowerCase() !== "p" || event.target.closest?.(FIELDS)) return;
    event.preventDefault();
    present(!presenting());
  });
};
