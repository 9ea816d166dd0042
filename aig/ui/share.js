// What comes in and goes out: settings inside dropped pictures, saved pictures, and one line that says what happened.
const HUGE = 30e6; // bytes; a saved picture has about one million
const LONGEST = 20000; // characters of settings
const box = element.querySelector(".said"), line = box.querySelector("p");
let hiding;

const say = (text, kind = "good", link = "") => {
  clearTimeout(hiding);
  box.querySelector("input")?.remove();
  line.textContent = text;
  box.dataset.kind = kind;
  box.classList.add("open");
  if (link) { // no clipboard here: show the link, selected
    const field = Object.assign(document.createElement("input"), { readOnly: true, value: link });
    field.setAttribute("aria-label", "Link");
    box.append(field);
    field.select();
  }
  if (kind === "good" && !link) hiding = setTimeout(() => box.classList.remove("open"), 5000);
};
document.addEventListener("aig:say", ({ detail }) => say(detail.text, detail.kind, detail.link));
box.querySelector("button").addEventListener("click", () => box.classList.remove("open"));

watch("value", () => {
  const told = props.value ?? {};
  if (told.bad || told.good) say(told.bad ?? told.good, told.bad ? "bad" : "good");
  if (told.frames) document.dispatchEvent(new CustomEvent(told.example ? "aig:example" : "aig:opened", { detail: told.frames }));
  if (told.picture) {
    const anchor = Object.assign(document.createElement("a"), { href: told.picture, download: told.name });
    anchor.click();
  }
  if (told.frames || told.picture) props.value = {}; // they are large
});

// The text chunk "aig" of a PNG file, "" without one; an error for what is no PNG.
const settings = (bytes) => {
  const view = new DataView(bytes.buffer);
  const word = (from, to) => String.fromCharCode(...bytes.subarray(from, to));
  if (bytes.length < 20 || word(1, 4) !== "PNG" || bytes[0] !== 0x89) throw Error("This file is no PNG picture; drop one that was saved here.");
  for (let at = 8; at + 12 <= bytes.length;) {
    const length = view.getUint32(at), kind = word(at + 4, at + 8), from = at + 8;
    if (from + length + 4 > bytes.length) throw Error("This picture is broken: it ends in the middle.");
    if (kind === "tEXt" && word(from, from + 4) === "aig\0" && length <= LONGEST) return word(from + 4, from + length);
    if (kind === "IEND") break;
    at = from + length + 4;
  }
  return "";
};

const read = async (file) => {
  if (file.size > HUGE) throw Error(`This file has ${Math.round(file.size / 1e6)} MB; pictures saved here are far smaller.`);
  const text = settings(new Uint8Array(await file.arrayBuffer()));
  if (!text) throw Error("This picture holds no settings of a run.");
  trigger("submit", { restore: text }); // with the event: the value may be overwritten by what the page is told meanwhile
};

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
let leaving;
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  document.body.classList.add("dropping");
  clearTimeout(leaving); // a drag that leaves the window says nothing reliable; it just stops
  leaving = setTimeout(() => document.body.classList.remove("dropping"), 400);
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  event.stopPropagation();
  document.body.classList.remove("dropping");
  const files = event.dataTransfer.files;
  if (files.length !== 1) return say("Drop one picture at a time.", "bad");
  read(files[0]).catch((problem) => say(problem.message, "bad"));
}, true);
