// The line above every page: the switch between light and dark, and presenter mode. News: "presenting".
import { presenter } from "./presenter.js";

// The system decides until someone presses the button; the choice is kept in this browser.
const KEY = "aig-lights";
const kept = () => { try { return localStorage.getItem(KEY); } catch { return null; } };

export const mount = (element) => {
  const choice = kept();
  if (choice && !new URLSearchParams(location.search).has("__theme")) document.body.classList.toggle("dark", choice === "dark");
  element.querySelector(".lights").addEventListener("click", () => {
    const dark = document.body.classList.toggle("dark");
    try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window: the choice lasts for this page */ }
  });
  presenter(element);
  return { name(schedule) { element.querySelector(".schedule-name").textContent = schedule; } };
};
