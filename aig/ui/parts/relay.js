// What comes in and goes out: settings inside dropped pictures, saved pictures, and one line that says what happened.
// The value is what whoever computes the runs has to tell the page, in any of these: bad or good (a sentence), frames (of a
// recorded run, of an example if `example` is set), picture and name (a file to save). News: "opened" and "example", with the
// frames. Event sent: submit, with the settings of a dropped picture as `restore`.
import { tell } from "./news.js";
import { settingsOf } from "./png.js";

const HUGE = 30e6; // bytes; a saved picture has about one million

const read = async (file) => {
  if (file.size > HUGE) throw Error(`This file has ${Math.round(file.size / 1e6)} MB; pictures saved here are far smaller.`);
  const text = settingsOf(new Uint8Array(await file.arrayBuffer()));
  if (!text) throw Error("This picture holds no settings of a run.");
  return text;
};

export const mount = (element, host) => {
  const box = element.querySelector(".said"), line = box.querySelector("p");
  let hiding;

  const say = (text, kind = "good", link = "") => {
    clearTimeout(hiding);
    box.querySelector("input")?.remove();
    line.textContent = text;
    box.dataset.kind = kind;
    box.classList.add("open");
    if (link) { // there is no clipboard: show the link, selected
      const field = Object.assign(document.createElement("input"), { readOnly: true, value: link });
      field.setAttribute("aria-label", "Link");
      box.append(field);
      field.select();
    }
    if (kind === "good" && !link) hiding = setTimeout(() => box.classList.remove("open"), 5000);
  };
  box.querySelector("button").addEventListener("click", () => box.classList.remove("open"));

  const pass = () => {
    const { bad, good, frames, example, picture, name } = host.value ?? {};
    if (bad || good) say(bad ?? good, bad ? "bad" : "good");
    if (frames) tell(element, example ? "example" : "opened", frames);
    if (picture) Object.assign(document.createElement("a"), { href: picture, download: name }).click();
    if (frames || picture) host.value = {}; // they are large
  };
  host.watch("value", pass);
  pass(); // the host may have told something before this part was here

  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let leaving;
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    document.body.classList.add("dropping");
    clearTimeout(leaving); // a drag that leaves the window says nothing reliable; it just stops
    leaving = setTimeout(() => document.body.classList.remove("dropping"), 400);
  });
  document.addEventListener("drop", async (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    document.body.classList.remove("dropping");
    const { files } = event.dataTransfer;
    if (files.length !== 1) return say("Drop one picture at a time.", "bad");
    try {
      host.send("submit", { restore: await read(files[0]) }); // with the event: the value may be overwritten meanwhile
    } catch (problem) {
      say(problem.message, "bad");
    }
  }, true);

  return { say };
};
