// The parts on a page of files: a recorded run to look at, and a curve to draw. What they need is in run.json.
import * as curve from "../../../aig/ui/parts/curve.js";
import * as stage from "../../../aig/ui/parts/stage.js";
import * as viewer from "../../../aig/ui/parts/viewer.js";
import { host } from "./host.js";

const PARTS = "../../../aig/ui/parts";
const place = (name) => document.querySelector(`.place.${name}`);
const [run, ...templates] = await Promise.all([
  fetch("run.json").then((answer) => answer.json()),
  ...["curve", "viewer"].map((name) => fetch(`${PARTS}/${name}.html`).then((answer) => answer.text())),
]);
place("schedule").innerHTML = templates[0];
place("seed").innerHTML = templates[1];

const hosts = {
  stage: host(place("run"), run.frames[0], {}, (html) => html),
  curve: host(place("schedule"), run.schedule, run.curve),
};
const shown = stage.mount(place("run"), hosts.stage), seed = viewer.mount(place("seed"), {});
curve.mount(place("schedule"), hosts.curve);

const news = []; // what the parts told, for the test
for (const name of ["asked", "copy", "cell", "drawn"]) document.addEventListener(`aig:${name}`, ({ detail }) => news.push([name, detail]));
document.addEventListener("aig:cell", ({ detail }) => seed.open(shown, detail));
document.addEventListener("aig:drawn", () => seed.redraw());
Object.assign(globalThis, { hosts, news });
shown.opened(run.frames);
