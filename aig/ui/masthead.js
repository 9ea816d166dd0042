// Light and dark: the system decides until someone presses the button; the choice is kept in this browser.
const KEY = "aig-lights";
const kept = (() => { try { return localStorage.getItem(KEY); } catch { return null; } })();
if (kept && !new URLSearchParams(location.search).has("__theme")) document.body.classList.toggle("dark", kept === "dark");
element.addEventListener("click", (event) => {
  if (!event.target.closest(".lights")) return;
  const dark = document.body.classList.toggle("dark");
  try { localStorage.setItem(KEY, dark ? "dark" : "light"); } catch { /* private window: the choice lasts for this page */ }
});
