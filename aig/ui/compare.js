// Cells are drawn as crisp blocks only when one image pixel covers a whole number of screen pixels, else they are smoothed.
const measure = () => {
  const picture = element.querySelector(".mosaic img");
  if (!picture || !picture.naturalWidth) return;
  const scale = (picture.getBoundingClientRect().width * devicePixelRatio) / picture.naturalWidth;
  element.dataset.scale = scale >= 1 && Math.abs(scale - Math.round(scale)) < 0.005 ? "whole" : "between";
};
element.addEventListener("load", measure, true); // load events do not bubble, but they can be captured
new ResizeObserver(measure).observe(element);

// The address bar follows the last run; the link holds every setting, so that it outlives the server.
const link = () => {
  const rest = new URLSearchParams(location.search);
  rest.delete("run");
  return `?${rest.size ? `${rest}&` : ""}run=${element.querySelector(".stage").dataset.link}`;
};

// The player: shows again the steps that were shown, of the recorded run or of the last live one. Its template disables nothing:
// every redraw would do so again, and what is disabled, if for a moment, loses the keyboard's focus.
const PACE = 320; // milliseconds a step
let frames = [], at = 0, playing;
const find = (name) => element.querySelector(`.player ${name}`);
const replaying = () => frames.length > 1 && !["running", "waiting"].includes(element.dataset.live);

const dress = () => {
  const ready = replaying(), recorded = element.querySelector(".stage").dataset.kind === "recorded";
  find(".play").disabled = find("input").disabled = !ready;
  find(".play").setAttribute("aria-pressed", Boolean(playing));
  find(".play").setAttribute("aria-label", playing ? "Pause" : "Play");
  find("input").value = frames.length > 1 ? (1000 * at) / (frames.length - 1) : 0;
  find("input").setAttribute("aria-valuetext", `step ${at + 1} of ${frames.length} shown`);
  find(".which-run").textContent = recorded ? "Recorded, press Run for a live one." : "";
  find(".save").disabled = find(".copy").disabled = !element.querySelector(".mosaic img");
  const status = element.querySelector(".progress span");
  if (ready && at < frames.length - 1) status.textContent = status.textContent.replace(/ · \d+ s left$/, "");
};

const show = (i) => {
  at = Math.min(Math.max(Math.round(i), 0), frames.length - 1);
  props.value = frames[at];
  queueMicrotask(dress); // after the page has been drawn again, which is queued already
};
const pause = () => { clearInterval(playing); playing = undefined; };
const play = () => {
  if (at >= frames.length - 1) show(0);
  playing = setInterval(() => {
    show(at + 1);
    if (at >= frames.length - 1) { pause(); queueMicrotask(dress); }
  }, PACE);
  dress();
};

watch("value", () => { // an update of a live run
  const { state, kind } = element.querySelector(".stage").dataset, drawn = element.querySelector(".mosaic img");
  if (kind === "recorded") return dress();
  pause();
  element.dataset.live = state;
  if (!drawn) frames = [];
  else if (state === "stopped" && frames.length) frames[frames.length - 1] = props.value;
  else frames.push(props.value);
  at = Math.max(0, frames.length - 1);
  if (state === "running" || state === "done") history.replaceState(history.state, "", link() + location.hash);
  dress();
});

const replay = (recorded) => {
  pause();
  frames = recorded;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return show(frames.length - 1);
  at = 0;
  play();
};
document.addEventListener("aig:opened", ({ detail }) => {
  element.style.visibility = "";
  if (detail.length && element.querySelector(".stage").dataset.kind === "recorded") replay(detail);
});
document.addEventListener("aig:example", ({ detail }) => {
  if (["running", "waiting"].includes(element.dataset.live)) return; // a run was begun meanwhile
  element.dataset.live = "";
  replay(detail);
});
if (new URLSearchParams(location.search).has("run")) { // what the link asks for arrives in a moment
  element.style.visibility = "hidden";
  setTimeout(() => { element.style.visibility = ""; }, 4000);
}

document.addEventListener("click", (event) => { if (event.target.closest("#run")) { pause(); dress(); } }, true);
element.addEventListener("input", (event) => {
  if (!event.target.closest(".player")) return;
  pause();
  show((event.target.value / 1000) * (frames.length - 1));
});
element.addEventListener("keydown", (event) => { // the range is continuous; its keys go step by step
  const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity }[event.key];
  if (!step || !event.target.matches(".player input")) return;
  event.preventDefault();
  pause();
  show(at + step);
});
element.addEventListener("click", async (event) => {
  const button = event.target.closest(".player button");
  if (!button) return;
  if (button.matches(".play")) {
    if (playing) { pause(); dress(); } else if (replaying()) play();
  } else if (button.matches(".save")) trigger("submit");
  else {
    const address = location.origin + location.pathname + link();
    let detail = { text: "The link to these settings is copied." };
    try { await navigator.clipboard.writeText(address); } catch { detail = { text: "Copy this link:", link: address }; } // no clipboard here
    document.dispatchEvent(new CustomEvent("aig:say", { detail }));
  }
});
dress();
