// The curve editor. Its value is the schedule's text and nothing else; everything drawn follows from it. The curve is drawn
// here, frame by frame; whoever computes the runs gets a curve when it is let go and answers with its cost or with what is wrong.
// Settings: presets ([name, label] of each), limits (points, gap, text), facts (steps, closed, cost, problem, drawn; see curve.py).
// Event sent: submit, to run at once.
import { clamp, percent, tidy } from "./numbers.js";
import { Past } from "./past.js";
import { make, plot as plotIn } from "./plot.js";
import { ceiling, gapFor, moved, nearest, snap } from "./scales.js";
import { drawn, handles, official, parse, progressOf } from "./schedules.js";

const REACH = { mouse: 12, pen: 16, touch: 22 }; // pixels around a point that take hold of it
const SLOW = 600, SLOWER = 1000; // milliseconds that a run on change waits for another key, or for more text
const MORPH = 250; // milliseconds
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const UNKNOWN = { steps: 1, closed: false, cost: "", problem: "", drawn: true };

export const mount = (element, host) => {
  const find = (selector) => element.querySelector(selector);
  const [root, svg, field, slider] = [".curve", ".plot", ".text input", ".exponent input"].map(find);
  const [caption, readout, wrong, follow] = [".name", ".readout", ".wrong", ".follow input"].map(find);
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const { limits } = host.props, names = host.props.presets.map(([name]) => name);
  const plot = plotIn(svg);

  let schedule = parse(host.value, limits) ?? parse("linear", limits); // the last good one
  let { points, straight } = handles(schedule);
  let shown = schedule.share; // what is drawn: the schedule's share, or on the way to it
  let facts = { ...UNKNOWN, ...host.props.facts };
  const past = new Past(schedule.name);
  let drag = null, beside = false, lastPress = null, hover = null;

  // --- drawing ---

  const progress = () => progressOf(facts.steps, facts.closed);
  const draw = () => plot.draw({ share: shown, points, progress: progress(), mark: drag ? points[drag.index][0] : hover });

  let frame = 0;
  const redraw = () => { frame ||= requestAnimationFrame(() => { frame = 0; draw(); }); };

  let morphing = 0;
  const drawAt = (share) => {
    cancelAnimationFrame(morphing);
    shown = share;
    redraw();
  };
  const morphTo = (share) => {
    if (calm.matches) return drawAt(share);
    cancelAnimationFrame(morphing);
    const from = shown, start = performance.now();
    const tick = (now) => {
      const part = clamp((now - start) / MORPH, 0, 1), eased = 1 - (1 - part) ** 3;
      shown = part < 1 ? (u) => from(u) + (share(u) - from(u)) * eased : share;
      draw();
      if (part < 1) morphing = requestAnimationFrame(tick);
    };
    morphing = requestAnimationFrame(tick);
  };

  const say = (at, share) => { readout.textContent = at === null ? "" : `progress ${percent(at)} · share ${share.toFixed(2)}`; };

  // --- what is said of the curve ---

  const tellExponent = (name) => {
    const power = name === "linear" ? 1 : name?.startsWith("power_") ? Number(name.slice(6)) : null;
    if (power !== null && document.activeElement !== slider) slider.value = power;
    const kept = power ?? Number(slider.value);
    find(".exponent").classList.toggle("idle", power === null);
    find(".exponent output").textContent = kept;
    slider.setAttribute("aria-valuetext", power === null ? `${kept}, not in use` : `${kept}`);
    slider.style.setProperty("--part", clamp((kept - 0.25) / 7.75, 0, 1));
  };
  const tell = () => {
    const name = official(schedule, names, limits), good = parse(field.value, limits) !== null;
    caption.textContent = name ?? "drawn curve";
    for (const [preset, button] of presets) button.setAttribute("aria-pressed", preset === name);
    for (const shape of ["smooth", "straight"]) find(`.${shape}`).setAttribute("aria-pressed", straight === (shape === "straight"));
    find(".undo").disabled = past.first;
    find(".redo").disabled = past.last;
    tellExponent(name);
    field.setAttribute("aria-invalid", !good);
    // What was said of an older text is not shown: its refusal where this text is good, or the reverse.
    wrong.textContent = good === facts.drawn ? facts.problem : "";
    find(".cost").textContent = facts.cost;
    const steps = progress(), [first, last] = [steps[0], steps.at(-1)].map((u) => schedule.share(u).toFixed(2));
    const ends = `${first} at the first of ${steps.length} steps, ${last} at the last`;
    svg.setAttribute("aria-label", `Share of the tuned model, ${name ?? "drawn curve"}: ${ends}`);
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
      else drawAt(next.share);
    }
    tell();
  };

  // Draw what the points have become.
  const reshape = () => {
    schedule = drawn(points, straight);
    field.value = schedule.name;
    caption.textContent = "drawn curve";
    drawAt(schedule.share);
  };

  let later = 0;
  // Hand the field's text over; ``patience`` in milliseconds waits for more before a run on change.
  const commit = ({ patience = 0, remember = true } = {}) => {
    const text = field.value, good = parse(text, limits) !== null, changed = text !== host.value;
    if (remember && good) past.add(text);
    if (changed) host.value = text;
    tell();
    clearTimeout(later);
    if (changed && good && follow.checked) later = setTimeout(() => host.send("submit"), patience);
  };

  const step = (by) => {
    if (!past.go(by)) return;
    take(past.text, { morph: true, write: true });
    commit({ remember: false });
  };

  // Add a point and return its index; null if there is no room.
  const add = (x, y) => {
    if (points.length >= limits.points) { readout.textContent = `${limits.points} points are the most`; return null; }
    const index = gapFor(points, x);
    if (index < 0) return null;
    points = [...points.slice(0, index), [tidy(x), tidy(clamp(y, 0, 1))], ...points.slice(index)];
    return index;
  };

  const remove = (index) => {
    if (index < 1 || index > points.length - 2) return;
    points = points.filter((_, i) => i !== index);
    reshape();
    draw();
    commit();
    plot.focus(Math.min(index, points.length - 1));
  };

  // --- pointers ---

  const inPlot = (event) => {
    const box = svg.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const under = (event) => plot.scales(shown).read(...inPlot(event));
  const pointUnder = (event, reach) => {
    const { place } = plot.scales(shown);
    return nearest(points.map(([x]) => place(x, Math.min(1, shown(x)))), inPlot(event), reach);
  };

  const addUnder = (event) => {
    const [x, y] = under(event);
    if (x < -0.02 || x > 1.02 || y < -0.15 || y > ceiling(shown) + 0.15) return null;
    const index = add(snap(x, event.altKey), snap(y, event.altKey)) ?? add(x, y); // beside a point the grid may have no room
    if (index !== null) { reshape(); draw(); plot.focus(index); say(...points[index]); }
    return index;
  };

  svg.addEventListener("mousedown", (event) => event.preventDefault()); // it would take the focus from the point
  svg.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || drag) return;
    const before = { text: field.value, points, straight };
    let index = pointUnder(event, REACH[event.pointerType] ?? 22), added = false;
    beside = index < 0 && event.pointerType !== "mouse"; // a finger may be scrolling the page; a tap adds, below
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
    } else plot.focus(index);
    const [x, y] = under(event);
    drag = { id: event.pointerId, index, before, added, from: [event.clientX, event.clientY], moved: false,
      offset: added ? [0, 0] : [points[index][0] - x, points[index][1] - y] };
    svg.setPointerCapture(event.pointerId);
    root.classList.add("dragging");
    lastPress = { index, time: event.timeStamp, moved: added };
  });
  svg.addEventListener("pointermove", (event) => {
    if (drag && drag.id !== event.pointerId) return;
    const [x, y] = under(event);
    if (!drag) {
      if (event.pointerType !== "mouse") return;
      hover = clamp(x, 0, 1);
      say(tidy(Math.round(hover * 100) / 100), shown(hover));
      redraw();
      return;
    }
    if (!drag.moved && Math.hypot(event.clientX - drag.from[0], event.clientY - drag.from[1]) < 3) return;
    drag.moved = lastPress.moved = true;
    points = moved(points, drag.index, [snap(x + drag.offset[0], event.altKey), snap(y + drag.offset[1], event.altKey)]);
    say(...points[drag.index]);
    reshape();
  });
  const drop = (keep) => {
    const { before, added, moved: changed, id } = drag;
    drag = null;
    if (svg.hasPointerCapture(id)) svg.releasePointerCapture(id);
    root.classList.remove("dragging");
    if (!keep) {
      take(before.text, { write: true });
      ({ points, straight } = before);
      say(null);
    } else if (added || changed) commit();
    redraw();
  };
  svg.addEventListener("pointerup", (event) => drag?.id === event.pointerId && drop(true));
  svg.addEventListener("pointercancel", (event) => drag?.id === event.pointerId && drop(false));
  svg.addEventListener("pointerleave", () => { if (!drag) { hover = null; say(null); redraw(); } });
  svg.addEventListener("touchstart", (event) => { if (!beside) event.preventDefault(); }, { passive: false }); // no scrolling
  svg.addEventListener("click", (event) => {
    if (beside && addUnder(event) !== null) { lastPress = null; commit(); }
  });

  // --- keys ---

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
      points = moved(points, index, [x + right * by, y + up * by]);
      reshape();
      draw();
      commit({ patience: SLOW });
      say(...points[index]);
    } else if (["Insert", "Enter", "+"].includes(event.key)) {
      const left = Math.min(index, points.length - 2), x = (points[left][0] + points[left + 1][0]) / 2;
      const added = add(tidy(x), schedule.share(x));
      if (added !== null) { reshape(); draw(); commit(); plot.focus(added); }
    } else if (["Delete", "Backspace"].includes(event.key)) remove(index);
    else return false;
    return true;
  };
  root.addEventListener("keydown", (event) => {
    if (event.target === field) return; // it has its own keys
    const index = plot.heldIn(event.target.closest(".handle"));
    let used = false;
    if (!drag) used = turn(event) || (index >= 0 && press(event, index));
    else if (event.key === "Escape") { drop(false); used = true; }
    if (used) event.preventDefault();
  });
  find(".handles").addEventListener("focusin", (event) => say(...(points[plot.heldIn(event.target)] ?? [null])));
  find(".handles").addEventListener("focusout", () => say(null));

  // --- the other controls ---

  const presets = host.props.presets.map(([name, label]) => {
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
  slider.addEventListener("change", () => commit({ patience: SLOW }));
  field.addEventListener("input", () => { take(field.value); commit({ patience: SLOWER }); });

  // --- the host ---

  host.watch("facts", () => {
    facts = { ...facts, problem: "", ...host.props.facts };
    tell();
    redraw();
  });
  host.watch("value", () => {
    if (host.value === field.value || drag) return;
    take(String(host.value), { morph: true, write: true });
    commit();
  });
  new ResizeObserver(([{ contentRect }]) => { plot.resize(contentRect); draw(); }).observe(svg);

  field.value = host.value;
  tell();

  return { text: () => field.value };
};
