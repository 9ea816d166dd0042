// The curve editor. Its value is the schedule's text and nothing else; everything drawn follows from it. The curve is drawn
// here, frame by frame; the server gets a curve when it is let go and answers with its cost or with what is wrong.
// Runs after schedules.js, with Gradio's element, props, trigger and watch.

const GRID = 0.05; // what dragging snaps to; Alt drags freely
const GAP = 0.01; // between the progress of neighbouring points
const REACH = { mouse: 12, pen: 16, touch: 22 }; // pixels around a point that take hold of it
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 40, right: 12, top: 12, bottom: 24 };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const find = (selector) => element.querySelector(selector);
const [root, plot, field, slider] = [".editor", ".plot", ".text input", ".exponent input"].map(find);
const [caption, readout, hair, handleBox, dotBox] = [".name", ".readout", ".hair", ".handles", ".dots"].map(find);
const [line, area] = [".share", ".area"].map(find);
const make = (tag, names) => {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(names)) node.setAttribute(name, value);
  return node;
};
const set = (node, names) => { for (const name in names) node.setAttribute(name, names[name]); };
const tidy = (number) => Number(number.toFixed(4));
const percent = (number) => `${tidy(number * 100)}%`;
const between = (number, low, high) => Math.min(high, Math.max(low, number));

const limits = props.limits;
const first = parse(props.value, limits) ?? parse("linear", limits);
let schedule = first; // the last good one
let { points, straight } = handles(first);
let shown = first.share; // what is drawn: the schedule's share, or on the way to it
let facts = { steps: 1, closed: false, cost: "", problem: "", drawn: true, ...props.facts };
let progress = progressOf(facts.steps, facts.closed);
let past = [first.name], present = 0; // what undo and redo go through
let size = { width: 0, height: 0 }, drag = null, beside = false, lastPress = null, hover = null;

// --- drawing ---

const top = () => Math.max(1, Math.ceil(20 * Math.max(shown(0), shown(0.5), shown(1)) - 1e-9) / 20);
const place = (u, share, most) => [
  MARGIN.left + u * (size.width - MARGIN.left - MARGIN.right),
  size.height - MARGIN.bottom - (share / most) * (size.height - MARGIN.top - MARGIN.bottom),
];

let axes = ""; // what the axes were drawn for
const drawAxes = (most) => {
  const wanted = `${most} ${size.width} ${size.height}`;
  if (axes === wanted) return;
  axes = wanted;
  const heights = { 0: 0, 1: 1, top: most };
  for (const node of plot.querySelectorAll("[data-at]")) {
    const [, y] = place(0, heights[node.dataset.at], most);
    if (node.dataset.at === "top") node.style.display = most > 1.01 ? "" : "none";
    if (node.tagName === "line") set(node, { x1: MARGIN.left, x2: size.width - MARGIN.right, y1: y, y2: y });
    else set(node, { x: MARGIN.left - 9, y: y + 4 });
  }
  plot.querySelector("text[data-at=top]").textContent = `${most}×`;
  set(find(".noise"), { x: MARGIN.left, y: size.height - 4 });
  set(find(".image"), { x: size.width - MARGIN.right, y: size.height - 4 });
};

const drawHandles = (most) => {
  const held = [...handleBox.children].indexOf(document.activeElement);
  while (handleBox.children.length > points.length) handleBox.lastChild.remove();
  if (held >= points.length) focus(points.length - 1); // else the next key would reach nobody
  while (handleBox.children.length < points.length) {
    const handle = make("g", { class: "handle", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100 });
    const rings = Object.entries({ hit: 22, halo: 12, knob: 6.5 });
    handle.append(...rings.map(([name, r]) => make("circle", { class: name, r })));
    const hint = make("title", {});
    hint.textContent = "Drag or use the arrow keys; double click or Delete removes, Enter adds another";
    handle.append(hint);
    handleBox.append(handle);
  }
  points.forEach(([x, y], i) => {
    const [left, height] = place(x, Math.min(1, shown(x)), most), handle = handleBox.children[i];
    handle.setAttribute("transform", `translate(${left.toFixed(1)},${height.toFixed(1)})`);
    if (handle.dataset.at === `${x},${y},${points.length}`) return;
    handle.dataset.at = `${x},${y},${points.length}`;
    set(handle, {
      "aria-label": `Point ${i + 1} of ${points.length}`,
      "aria-valuenow": tidy(y * 100),
      "aria-valuetext": `progress ${percent(x)}, share ${percent(y)}`,
    });
  });
};

const draw = () => {
  if (!size.width) return;
  const most = top();
  let path = "";
  for (let i = 0; i <= 200; i++) {
    const [x, y] = place(i / 200, shown(i / 200), most);
    path += `${i ? "L" : "M"}${x.toFixed(1)},${y.toFixed(1)}`;
  }
  const [left, floor] = place(0, 0, most), [right] = place(1, 0, most);
  set(line, { d: path });
  set(area, { d: `${path}L${right},${floor}L${left},${floor}Z` });
  progress.forEach((u, i) => {
    const share = shown(u), [x, y] = place(u, share, most), dot = dotBox.children[i];
    set(dot, { cx: x.toFixed(1), cy: y.toFixed(1) });
    const g = Math.min(1, share).toFixed(2);
    if (dot.dataset.g !== g) { dot.dataset.g = g; dot.style.setProperty("--g", g); }
  });
  drawAxes(most);
  drawHandles(most);
  const at = drag ? points[drag.index][0] : hover;
  hair.style.display = at === null ? "none" : "";
  if (at !== null) {
    const [x, y] = place(at, shown(at), most);
    set(hair, { x1: x, x2: x, y1: y, y2: floor });
  }
};

let frame = 0;
const redraw = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };

let morphing = 0;
const morphTo = (share) => {
  cancelAnimationFrame(morphing);
  const from = shown, start = performance.now();
  if (calm.matches) { shown = share; redraw(); return; }
  const tick = (now) => {
    const part = Math.min(1, Math.max(0, now - start) / 250), eased = 1 - (1 - part) ** 3;
    shown = part < 1 ? (u) => from(u) + (share(u) - from(u)) * eased : share;
    draw();
    if (part < 1) morphing = requestAnimationFrame(tick);
  };
  morphing = requestAnimationFrame(tick);
};

const say = (at, share) => { readout.textContent = at === null ? "" : `progress ${percent(at)} · share ${share.toFixed(2)}`; };

const fresh = () => { // the dots of the real steps
  progress = progressOf(facts.steps, facts.closed);
  dotBox.replaceChildren(...progress.map(() => make("circle", { class: "dot", r: between(90 / facts.steps, 2, 3.6) })));
};

// --- names ---

// The official name of a drawn curve that equals a named one, else null.
const official = (candidate) => {
  if (!candidate.points) return candidate.name === "power_1" ? "linear" : candidate.name;
  const flat = candidate.points.every(([, y]) => y === candidate.points[0][1]);
  const names = [...presets.map(([name]) => name), ...(flat ? [`constant_${format(candidate.points[0][1])}`] : [])];
  const probes = Array.from({ length: 101 }, (_, i) => i / 100).concat(candidate.points.map(([x]) => x));
  return names.find((name) => {
    const named = parse(name, limits).share;
    return probes.every((u) => Math.abs(named(u) - candidate.share(u)) < 1e-9);
  }) ?? null;
};

const presets = props.presets.map(([name, label]) => {
  const button = document.createElement("button"), icon = make("svg", { viewBox: "0 0 26 14", "aria-hidden": "true" });
  const { share } = parse(name, limits);
  const corners = Array.from({ length: 49 }, (_, i) => `${(1 + i / 2).toFixed(1)},${(13 - 12 * share(i / 48)).toFixed(1)}`);
  icon.append(make("polyline", { points: corners.join(" ") }));
  button.type = "button";
  button.append(icon, label);
  button.addEventListener("click", () => { take(name, { morph: true, write: true }); commit(); });
  find(".presets").append(button);
  return [name, button];
});

const tell = () => {
  const name = official(schedule), good = parse(field.value, limits) !== null;
  caption.textContent = name ?? "drawn curve";
  for (const [preset, button] of presets) button.setAttribute("aria-pressed", preset === name);
  for (const shape of ["smooth", "straight"]) find(`.${shape}`).setAttribute("aria-pressed", straight === (shape === "straight"));
  find(".undo").disabled = present === 0;
  find(".redo").disabled = present === past.length - 1;
  const power = name === "linear" ? 1 : name?.startsWith("power_") ? Number(name.slice(6)) : null;
  if (power !== null && document.activeElement !== slider) slider.value = power;
  const kept = power ?? Number(slider.value);
  find(".exponent").classList.toggle("idle", power === null);
  find(".exponent output").textContent = kept;
  slider.setAttribute("aria-valuetext", power === null ? `${kept}, not in use` : `${kept}`);
  slider.style.setProperty("--part", between((kept - 0.25) / 7.75, 0, 1));
  field.setAttribute("aria-invalid", !good);
  // What the server says of an older text is not shown: its refusal of a text that is good here, or the reverse.
  find(".wrong").textContent = good === facts.drawn ? facts.problem : "";
  find(".cost").textContent = facts.cost;
  const shares = [schedule.share(progress[0]), schedule.share(progress.at(-1))].map((share) => share.toFixed(2));
  const ends = `${shares[0]} at the first of ${progress.length} steps, ${shares[1]} at the last`;
  plot.setAttribute("aria-label", `Share of the tuned model, ${name ?? "drawn curve"}: ${ends}`);
};

// --- changes ---

// Draw the schedule of a text, if it is one. ``write`` puts the text into the field.
const take = (text, { morph = false, write = false } = {}) => {
  if (write) field.value = text;
  const next = parse(text, limits);
  if (next) {
    schedule = next;
    ({ points, straight } = handles(next));
    if (morph) morphTo(next.share);
    else { cancelAnimationFrame(morphing); shown = next.share; redraw(); }
  }
  tell();
};

// Draw what the points have become.
const reshape = () => {
  schedule = drawn(points, straight);
  cancelAnimationFrame(morphing);
  shown = schedule.share;
  field.value = schedule.name;
  caption.textContent = "drawn curve";
  redraw();
};

let later = 0;
// Hand the field's text over; ``patience`` in milliseconds waits for more before a run on change.
const commit = ({ patience = 0, remember = true } = {}) => {
  const text = field.value, changed = text !== props.value;
  if (remember && parse(text, limits) && text !== past[present]) {
    past = [...past.slice(Math.max(0, present - 198), present + 1), text];
    present = past.length - 1;
  }
  if (changed) props.value = text;
  tell();
  clearTimeout(later);
  if (changed && find(".follow input").checked && parse(text, limits)) later = setTimeout(() => trigger("submit"), patience);
};

const step = (by) => {
  const next = present + by;
  if (next < 0 || next >= past.length) return;
  present = next;
  take(past[present], { morph: true, write: true });
  commit({ remember: false });
};

const move = (index, x, y) => {
  const low = points[index - 1]?.[0] + GAP, high = points[index + 1]?.[0] - GAP;
  const free = index > 0 && index < points.length - 1 && low <= high; // the ends keep their progress
  points[index] = [free ? tidy(between(x, low, high)) : points[index][0], tidy(between(y, 0, 1))];
};

// Add a point and return its index; null if there is no room.
const add = (x, y) => {
  const index = points.findIndex(([other]) => other > x);
  if (points.length >= limits.points) { readout.textContent = `${limits.points} points are the most`; return null; }
  if (index < 1 || tidy(x - points[index - 1][0]) < GAP || tidy(points[index][0] - x) < GAP) return null;
  points.splice(index, 0, [tidy(x), tidy(between(y, 0, 1))]);
  return index;
};

const remove = (index) => {
  if (index < 1 || index > points.length - 2) return;
  points.splice(index, 1);
  reshape();
  draw();
  commit();
  focus(Math.min(index, points.length - 1));
};

const focus = (index) => { handleBox.children[index]?.focus({ preventScroll: true }); };

// --- pointers ---

const under = (event) => {
  const box = plot.getBoundingClientRect(), inner = size.width - MARGIN.left - MARGIN.right;
  return [
    (event.clientX - box.left - MARGIN.left) / inner,
    ((box.bottom - MARGIN.bottom - event.clientY) / (size.height - MARGIN.top - MARGIN.bottom)) * top(),
  ];
};
const snap = (number, event) => (event.altKey ? Math.round(number * 1000) / 1000 : tidy(Math.round(number / GRID) * GRID));

// The nearest point within reach, -1 if none.
const nearest = (event, reach) => {
  const box = plot.getBoundingClientRect();
  const away = points.map(([x]) => {
    const [left, height] = place(x, Math.min(1, shown(x)), top());
    return Math.hypot(event.clientX - box.left - left, event.clientY - box.top - height);
  });
  const index = away.indexOf(Math.min(...away));
  return away[index] <= reach ? index : -1;
};

const addUnder = (event) => {
  const [x, y] = under(event);
  if (x < -0.02 || x > 1.02 || y < -0.15 || y > top() + 0.15) return null;
  const index = add(snap(x, event), snap(y, event)) ?? add(x, y); // beside a point the grid may have no room
  if (index !== null) { reshape(); draw(); focus(index); say(...points[index]); }
  return index;
};

plot.addEventListener("mousedown", (event) => event.preventDefault()); // it would take the focus from the point
plot.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || drag) return;
  const touched = event.pointerType;
  const before = { text: field.value, points: points.map((point) => [...point]), straight };
  let index = nearest(event, REACH[touched] ?? 22), added = false;
  beside = index < 0 && touched !== "mouse"; // a finger may be scrolling the page; a tap adds, below
  if (index >= 0 && lastPress?.index === index && event.timeStamp - lastPress.time < 400 && !lastPress.moved) {
    lastPress = null;
    remove(index);
    return;
  }
  if (beside) return;
  if (index < 0) {
    index = addUnder(event) ?? -1;
    added = true;
    if (index < 0) return;
  } else focus(index);
  const [x, y] = under(event);
  drag = { id: event.pointerId, index, before, added, from: [event.clientX, event.clientY], moved: false,
    offset: added ? [0, 0] : [points[index][0] - x, points[index][1] - y] };
  plot.setPointerCapture(event.pointerId);
  root.classList.add("dragging");
  lastPress = { index, time: event.timeStamp, moved: added };
});
plot.addEventListener("pointermove", (event) => {
  if (drag && drag.id !== event.pointerId) return;
  const [x, y] = under(event);
  if (!drag) {
    if (event.pointerType !== "mouse") return;
    hover = between(x, 0, 1);
    say(tidy(Math.round(hover * 100) / 100), shown(hover));
    redraw();
    return;
  }
  if (!drag.moved && Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) < 3) return;
  drag.moved = lastPress.moved = true;
  move(drag.index, snap(x + drag.offset[0], event), snap(y + drag.offset[1], event));
  say(...points[drag.index]);
  reshape();
});
const drop = (keep) => {
  const { before, added, moved, id } = drag;
  drag = null;
  if (plot.hasPointerCapture(id)) plot.releasePointerCapture(id);
  root.classList.remove("dragging");
  if (!keep) {
    take(before.text, { write: true });
    ({ points, straight } = before);
    redraw();
    say(null);
  } else if (added || moved) commit();
  redraw();
};
plot.addEventListener("pointerup", (event) => drag?.id === event.pointerId && drop(true));
plot.addEventListener("pointercancel", (event) => drag?.id === event.pointerId && drop(false));
plot.addEventListener("pointerleave", () => { if (!drag) { hover = null; say(null); redraw(); } });
plot.addEventListener("touchstart", (event) => { if (!beside) event.preventDefault(); }, { passive: false }); // no scrolling
plot.addEventListener("click", (event) => {
  if (beside && addUnder(event) !== null) { lastPress = null; commit(); }
});

// --- keys ---

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const turn = (event) => { // undo and redo, true if the key was one of them
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || event.altKey || !["z", "y"].includes(key)) return false;
  step(key === "y" || event.shiftKey ? 1 : -1);
  return true;
};
const press = (event, index) => { // true if the key meant something to a point
  if (event.ctrlKey || event.metaKey) return false;
  if (ARROWS[event.key]) {
    const by = event.shiftKey ? 0.1 : 0.01, [right, up] = ARROWS[event.key], [x, y] = points[index];
    move(index, x + right * by, y + up * by);
    reshape();
    draw();
    commit({ patience: 600 });
    say(...points[index]);
  } else if (["Insert", "Enter", "+"].includes(event.key)) {
    const left = Math.min(index, points.length - 2), x = (points[left][0] + points[left + 1][0]) / 2;
    const added = add(tidy(x), schedule.share(x));
    if (added !== null) { reshape(); draw(); commit(); focus(added); }
  } else if (["Delete", "Backspace"].includes(event.key)) remove(index);
  else return false;
  return true;
};
root.addEventListener("keydown", (event) => {
  if (event.target === field) return; // it has its own keys
  const index = [...handleBox.children].indexOf(event.target.closest(".handle"));
  let used = false;
  if (!drag) used = turn(event) || (index >= 0 && press(event, index));
  else if (event.key === "Escape") { drop(false); used = true; }
  if (used) event.preventDefault();
});
handleBox.addEventListener("focusin", (event) => say(...points[[...handleBox.children].indexOf(event.target)] ?? [null]));
handleBox.addEventListener("focusout", () => say(null));

// --- the other controls ---

for (const shape of ["smooth", "straight"]) {
  find(`.${shape}`).addEventListener("click", () => {
    if (straight === (shape === "straight")) return;
    take(drawn(points, shape === "straight").name, { morph: true, write: true });
    commit();
  });
}
find(".undo").addEventListener("click", () => step(-1));
find(".redo").addEventListener("click", () => step(1));
slider.addEventListener("input", () => take(`power_${Number(slider.value)}`, { write: true }));
slider.addEventListener("change", () => commit({ patience: 600 }));
field.addEventListener("input", () => { take(field.value); commit({ patience: 1000 }); });

// Gradio takes every quoted word here for an event of its own, so the name of a property that the server sets is not quoted.
const [FACTS] = Object.keys({ facts });
watch(FACTS, () => {
  facts = { ...facts, problem: "", ...props.facts };
  fresh();
  tell();
  redraw();
});
watch("value", () => {
  if (props.value === field.value || drag) return;
  take(String(props.value), { morph: true, write: true });
  commit();
});
new ResizeObserver(([{ contentRect }]) => { size = contentRect; draw(); }).observe(plot);

field.value = props.value;
fresh();
tell();
