// The stage: the sentence, the trace, the grids with their scores. Its value is its HTML, drawn by whoever computes the run;
// here the grids get keys, crisp pixels and the player. Its element is a container: `container: stage / inline-size`.
// News: "asked" (the settings of a run that goes on), "copy" (those to be copied), "cell" (a picture was chosen), "drawn" (a
// picture is there). Event sent: submit, to save the picture.
import { tell } from "./news.js";
import { whole } from "./numbers.js";
import { player } from "./player.js";

const ARROWS = (across) => ({ ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across });

export const mount = (element, host) => {
  const { opened, replay, pause, follow, dress } = player(element, host);
  const arms = () => [...element.querySelectorAll(".arm")];
  const cells = (arm) => [...arm.querySelectorAll(".cells button")];
  const size = (arm) => ["--across", "--down"].map((name) => Number(arm.querySelector(".mosaic").style.getPropertyValue(name)));

  const measure = () => {
    const picture = element.querySelector(".mosaic img");
    if (!picture || !picture.naturalWidth) return;
    const scale = (picture.getBoundingClientRect().width * devicePixelRatio) / picture.naturalWidth;
    element.dataset.scale = whole(scale) ? "whole" : "between";
  };
  new ResizeObserver(measure).observe(element);
  element.addEventListener("load", () => { // load events do not bubble, but they can be captured
    measure();
    tell(element, "drawn");
  }, true);

  element.addEventListener("click", (event) => {
    const button = event.target.closest(".cells button"), arm = button?.closest(".arm");
    if (button) tell(element, "cell", { column: arms().indexOf(arm), cell: cells(arm).indexOf(button) });
  });
  element.addEventListener("keydown", (event) => { // arrows walk through a grid, which is one tab stop
    const button = event.target.closest?.(".cells button"), arm = button?.closest(".arm");
    const step = arm && ARROWS(size(arm)[0])[event.key];
    if (!step) return;
    event.preventDefault();
    cells(arm)[cells(arm).indexOf(button) + step]?.focus();
  });

  host.watch("value", follow);
  if (element.querySelector(".stage").dataset.state === "idle") dress();
  else follow(); // the host may have shown an update before this part was here

  return {
    opened,
    replay,
    pause,
    focus(column, cell) { cells(arms()[column] ?? element)[cell]?.focus(); },
    // What is shown now: the columns that have a picture, and how it is divided into cells.
    columns: () => arms().flatMap((arm) => {
      const picture = arm.querySelector(".mosaic img"), [across, down] = size(arm);
      if (!picture?.naturalWidth) return [];
      const names = cells(arm).map((cell) => cell.getAttribute("aria-label"));
      return [{
        picture, across, names, title: arm.querySelector("h3").firstChild.textContent, cells: names.length,
        width: picture.naturalWidth / across, height: picture.naturalHeight / down, colour: getComputedStyle(arm).getPropertyValue("--mine"),
      }];
    }),
  };
};
