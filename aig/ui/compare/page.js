// The Compare page: its parts by name, and what the news of one part mean to the others.
import * as masthead from "../shell/masthead.js";
import * as curve from "../parts/curve.js";
import * as relay from "../parts/relay.js";
import * as stage from "../parts/stage.js";
import * as viewer from "../parts/viewer.js";
import { query } from "./address.js";

const PARTS = { masthead, stage, relay, viewer, curve };

// Parts arrive one by one; whoever needs one waits for it.
const arrive = {}, part = {};
for (const name in PARTS) part[name] = new Promise((arrived) => { arrive[name] = arrived; });
export const mount = (name, element, host) => arrive[name](PARTS[name].mount(element, host));

const hear = (news, answer) => document.addEventListener(`aig:${news}`, ({ detail }) => answer(detail));
const nameSchedule = async () => (await part.masthead).name((await part.curve).text());

// What a link asks for arrives in a moment; until then the page would show something else.
const reveal = () => document.body.classList.remove("expecting");
if (new URLSearchParams(location.search).has("run")) {
  document.body.classList.add("expecting");
  setTimeout(reveal, 4000);
}
hear("opened", async (frames) => {
  reveal();
  (await part.stage).opened(frames);
});
hear("example", async (frames) => (await part.stage).replay(frames));
hear("cell", async (place) => (await part.viewer).open(await part.stage, place));
hear("drawn", async () => (await part.viewer).redraw());
hear("presenting", nameSchedule);

document.addEventListener("click", async (event) => {
  if (!event.target.closest("#run")) return;
  nameSchedule();
  (await part.stage).pause();
}, true);

// The address bar follows the last run; the link holds every setting, so that it outlives the server.
hear("asked", (link) => history.replaceState(history.state, "", query(location.search, link) + location.hash));
hear("copy", async (link) => {
  const address = location.origin + location.pathname + query(location.search, link), { say } = await part.relay;
  try {
    await navigator.clipboard.writeText(address);
    say("The link to these settings is copied.");
  } catch { // no clipboard here
    say("Copy this link:", "good", address);
  }
});
