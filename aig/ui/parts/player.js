// The player of a stage: shows again the steps that were shown, of the recorded run or of the last live one. Its template
// disables nothing: every redraw would do so again, and what is disabled, if for a moment, loses the keyboard's focus.
import { Film, STEPS } from "./film.js";
import { tell } from "./news.js";

const PACE = 320; // milliseconds a step

export const player = (element, host) => {
  const film = new Film(), find = (name) => element.querySelector(`.player ${name}`);
  let playing, live = ""; // the state of the last live run
  const busy = () => ["running", "waiting"].includes(live);
  const replaying = () => film.length > 1 && !busy();

  const dress = () => {
    const ready = replaying(), { kind } = element.querySelector(".stage").dataset;
    find(".play").disabled = find("input").disabled = !ready;
    find(".play").setAttribute("aria-pressed", Boolean(playing));
    find(".play").setAttribute("aria-label", playing ? "Pause" : "Play");
    find("input").value = 1000 * film.part;
    find("input").setAttribute("aria-valuetext", `step ${film.at + 1} of ${film.length} shown`);
    find(".which-run").textContent = kind === "recorded" ? "Recorded, press Run for a live one." : "";
    find(".save").disabled = find(".copy").disabled = !element.querySelector(".mosaic img");
    const status = element.querySelector(".progress span");
    if (ready && !film.ended) status.textContent = status.textContent.replace(/ · \d+ s left$/, "");
  };

  const show = () => {
    host.value = film.frame;
    queueMicrotask(dress); // after the stage has been drawn again, which is queued already
  };
  const halt = () => { // says nothing yet: dressing would take from the slider what a hand just gave it
    clearInterval(playing);
    playing = undefined;
  };
  const pause = () => { halt(); dress(); };
  const play = () => {
    const go = (at) => { film.go(at); show(); };
    if (film.ended) go(0);
    playing = setInterval(() => {
      go(film.at + 1);
      if (film.ended) halt();
    }, PACE);
    dress();
  };
  const replay = (frames) => {
    halt();
    film.load(frames);
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) return play();
    film.goPart(1);
    show();
  };

  // An update of a live run has been drawn.
  const follow = () => {
    const { state, kind, link } = element.querySelector(".stage").dataset;
    if (kind === "recorded") return dress();
    halt();
    live = state;
    if (element.querySelector(".mosaic img")) film.add(host.value, state === "stopped");
    else film.load([]);
    if (state === "running" || state === "done") tell(element, "asked", link);
    dress();
  };

  element.addEventListener("input", (event) => {
    if (!event.target.closest(".player")) return;
    halt();
    film.goPart(event.target.value / 1000);
    show();
  });
  element.addEventListener("keydown", (event) => { // the range is continuous; its keys go step by step
    const step = STEPS[event.key];
    if (!step || !event.target.matches(".player input")) return;
    event.preventDefault();
    halt();
    film.go(film.at + step);
    show();
  });
  element.addEventListener("click", (event) => {
    const button = event.target.closest(".player button");
    if (button?.matches(".play")) {
      if (playing) pause();
      else if (replaying()) play();
    } else if (button?.matches(".save")) host.send("submit");
    else if (button?.matches(".copy")) tell(element, "copy", element.querySelector(".stage").dataset.link);
  });

  return {
    pause,
    follow,
    dress,
    // The recorded run that the page opens on, unless a run was begun meanwhile.
    opened(frames) {
      if (frames.length && element.querySelector(".stage").dataset.kind === "recorded") replay(frames);
    },
    // Another recorded run, unless a live one goes on.
    replay(frames) {
      if (busy()) return;
      live = "";
      replay(frames);
    },
  };
};
