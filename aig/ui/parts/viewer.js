// The viewer: one seed in every column, side by side, under dividers, as a difference, alternating. The pixels are cut from the
// mosaics on the page, so previews of a running comparison show up here as they arrive.
import { MODES, arrange, choices, cut } from "./layout.js";
import { clamp, modulo, whole } from "./numbers.js";

const FACTOR = 2; // of the difference, whose small parts would be too dark to see
const HALF = 500; // milliseconds that the flicker shows one column: two changes a second, below what can harm
const FARTHEST = 16;
const GAP = 14, CAPTION = 34; // CSS pixels, as in the style sheet

export const mount = (element) => {
  const dialog = element.querySelector("dialog");
  const [title, panes, told, which] = ["h2", ".panes", ".told", ".which"].map((name) => dialog.querySelector(name));
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const look = { mode: "side", column: 0, cell: 0, choice: 0, zoom: 1, x: 0.5, y: 0.5, cuts: [], phase: 0, paused: false };
  let source, timer, pending = 0; // source: the stage whose columns() are looked at

  const part = (column) => [column.picture, ...cut(column, look.cell)];

  // Draw part of a cell on a canvas of its own backing pixels: crisp when a pixel covers a whole number of them, else smoothed.
  const paint = (canvas, [picture, left, top, width, height], from = 0, to = 1) => {
    const pen = canvas.getContext("2d"), scale = (canvas.width / width) * look.zoom, crisp = whole(scale);
    const x = canvas.width / 2 - look.x * width * scale, y = canvas.height / 2 - look.y * height * scale;
    pen.save();
    pen.beginPath();
    pen.rect(from * canvas.width, 0, (to - from) * canvas.width, canvas.height);
    pen.clip();
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.imageSmoothingEnabled = !crisp;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(picture, left, top, width, height, x, y, width * scale, height * scale);
    pen.restore();
    canvas.dataset.scale = crisp ? "whole" : "between";
  };

  const difference = (a, b) => {
    const [one, other] = [a, b].map((column) => {
      const canvas = new OffscreenCanvas(column.width, column.height), pen = canvas.getContext("2d", { willReadFrequently: true });
      pen.drawImage(column.picture, ...cut(column, look.cell), 0, 0, column.width, column.height);
      return pen.getImageData(0, 0, column.width, column.height);
    });
    let sum = 0;
    for (let i = 0; i < one.data.length; i++) {
      if (i % 4 === 3) continue;
      const apart = Math.abs(one.data[i] - other.data[i]);
      sum += apart;
      one.data[i] = FACTOR * apart; // a clamped array: what exceeds 255 stays there
    }
    const canvas = new OffscreenCanvas(a.width, a.height);
    canvas.getContext("2d").putImageData(one, 0, 0);
    return [canvas, sum / ((one.data.length / 4) * 3)];
  };

  // As many panes as asked, with their captions; their canvases.
  const lay = (count, column, captions) => {
    while (panes.children.length > count) panes.lastChild.remove();
    while (panes.children.length < count) {
      const pane = document.createElement("figure");
      pane.innerHTML = '<div class="view"><canvas></canvas></div><figcaption></figcaption>';
      panes.append(pane);
    }
    const room = panes.getBoundingClientRect(), density = devicePixelRatio;
    const { across, width, height } = arrange({ count, room, image: column, density, gap: GAP, caption: CAPTION });
    panes.style.gridTemplateColumns = `repeat(${across}, ${width / density}px)`;
    return [...panes.children].map((pane, i) => {
      const canvas = pane.querySelector("canvas");
      if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
      canvas.style.width = `${width / density}px`;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", captions[i]);
      pane.querySelector("figcaption").textContent = captions[i];
      return canvas;
    });
  };

  const dividers = (view, shown) => {
    const count = shown.length - 1;
    if (look.cuts.length !== count) look.cuts = [...Array(count)].map((_, i) => (i + 1) / (count + 1));
    while (view.querySelectorAll(".divider").length > count) view.querySelector(".divider").remove();
    while (view.querySelectorAll(".divider").length < count) {
      const bar = document.createElement("div");
      Object.assign(bar, { className: "divider", tabIndex: 0, role: "slider" });
      bar.append(document.createElement("i"));
      view.append(bar);
    }
    view.querySelectorAll(".divider").forEach((bar, i) => {
      const percent = Math.round(100 * look.cuts[i]);
      bar.style.left = `${100 * look.cuts[i]}%`;
      bar.setAttribute("aria-label", `Divider between ${shown[i].title} and ${shown[i + 1].title}`);
      for (const [name, value] of [["valuemin", 0], ["valuemax", 100], ["valuenow", percent]]) bar.setAttribute(`aria-${name}`, value);
    });
  };

  const moveDivider = (i, place) => {
    const { cuts } = look;
    cuts[i] = clamp(place, i ? cuts[i - 1] : 0, i < cuts.length - 1 ? cuts[i + 1] : 1);
    draw();
  };

  // What each mode draws of the chosen columns; it answers with what it has to say of that.
  const modes = {
    side(shown) {
      lay(shown.length, shown[0], shown.map(({ title }) => title)).forEach((canvas, i) => paint(canvas, part(shown[i])));
      return "";
    },
    slider(shown) {
      const [canvas] = lay(1, shown[0], [shown.map(({ title }) => title).join(" | ")]);
      dividers(canvas.parentElement, shown);
      const edges = [0, ...look.cuts, 1];
      shown.forEach((column, i) => paint(canvas, part(column), edges[i], edges[i + 1]));
      return "";
    },
    difference([a, b]) {
      const [picture, mean] = difference(a, b);
      const [canvas] = lay(1, a, [`Absolute difference of ${a.title} and ${b.title}, ×${FACTOR}`]);
      paint(canvas, [picture, 0, 0, picture.width, picture.height]);
      return ` · amplified ${FACTOR} times · mean difference ${mean.toFixed(1)} of 255`;
    },
    flicker(shown) {
      const now = shown[look.phase % 2], [canvas] = lay(1, now, [now.title]);
      paint(canvas, part(now));
      return still.matches || look.paused ? " · press Space to step" : " · 2 changes a second, Space pauses";
    },
  };

  const offer = (options) => { // the choices of columns; a list that is open in the browser is left alone
    if (options.join("\n") !== [...which.options].map((option) => option.text).join("\n")) {
      which.replaceChildren(...options.map((text, i) => new Option(text, i)));
    }
    which.value = look.choice;
  };

  const draw = () => {
    if (!dialog.open) return;
    const all = source.columns();
    if (!all.length) return dialog.close();
    look.cell = clamp(look.cell, 0, all[0].cells - 1);
    const sets = choices(look.mode, all.length);
    look.choice = modulo(look.choice, sets.length);
    title.textContent = all[0].names[look.cell].replace(/,.*/, "").replace(/^s/, "S");
    for (const button of dialog.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === look.mode);
    offer(sets.map((set) => (set.length === all.length && look.mode === "side" ? "All columns" : set.map((i) => all[i].title).join(" | "))));
    dialog.dataset.mode = look.mode;
    if (look.mode !== "slider") dialog.querySelectorAll(".divider").forEach((bar) => bar.remove());
    const shown = sets[look.choice].map((i) => all[i]);
    const note = modes[shown.length < 2 ? "side" : look.mode](shown);
    panes.querySelectorAll("figure").forEach((pane, i) => {
      const column = look.mode === "flicker" ? shown[look.phase % 2] : look.mode === "side" ? shown[i] : null;
      pane.style.setProperty("--mine", column ? column.colour : "var(--edge)");
    });
    told.textContent = `${Math.round(100 * look.zoom)}%${note}`;
  };

  const later = () => { pending ||= requestAnimationFrame(() => { pending = 0; draw(); }); };

  const flicker = () => {
    clearInterval(timer);
    if (dialog.open && look.mode === "flicker" && !look.paused && !still.matches) timer = setInterval(() => { look.phase++; draw(); }, HALF);
  };

  const setMode = (mode) => {
    if (document.activeElement.matches(".viewer [data-mode]")) dialog.querySelector(`[data-mode=${mode}]`).focus();
    Object.assign(look, { mode, choice: 0, phase: 0, paused: false, cuts: [] });
    flicker();
    draw();
  };

  // Zoom about a place of the pane, given in [0, 1]; the picture never leaves it.
  const zoom = (factor, px = 0.5, py = 0.5) => {
    const before = look.zoom;
    look.zoom = clamp(before * factor, 1, FARTHEST);
    if (Math.abs(look.zoom - Math.round(look.zoom)) < 0.04) look.zoom = Math.round(look.zoom);
    pan((px - 0.5) * (1 / before - 1 / look.zoom), (py - 0.5) * (1 / before - 1 / look.zoom));
  };

  const pan = (dx, dy) => {
    const edge = 0.5 / look.zoom;
    look.x = clamp(look.x + dx, edge, 1 - edge);
    look.y = clamp(look.y + dy, edge, 1 - edge);
    later();
  };

  const open = (stage, { column, cell }) => {
    source = stage;
    Object.assign(look, { column, cell, zoom: 1, x: 0.5, y: 0.5 });
    if (!dialog.open) dialog.showModal();
    flicker();
    draw();
  };

  new ResizeObserver(later).observe(dialog);

  dialog.addEventListener("close", () => {
    clearInterval(timer);
    source.focus(look.column, look.cell);
  });
  dialog.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (event.target === dialog || button?.matches(".close")) return dialog.close();
    if (button?.dataset.mode) setMode(button.dataset.mode);
    if (button?.dataset.go) { look.cell = modulo(look.cell + Number(button.dataset.go), source.columns()[0].cells); draw(); }
    if (button?.dataset.zoom) zoom(Number(button.dataset.zoom));
  });
  which.addEventListener("change", () => { look.choice = Number(which.value); draw(); });

  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Tab") { // stay inside, also where the browser would go on to its own buttons
      const stops = [...dialog.querySelectorAll("button, select, [tabindex='0']")].filter((stop) => stop.getClientRects().length);
      const at = stops.indexOf(document.activeElement) + (event.shiftKey ? -1 : 1);
      event.preventDefault();
      return stops[modulo(at, stops.length)].focus();
    }
    const bar = event.target.closest(".divider"), bars = [...dialog.querySelectorAll(".divider")];
    const actions = {
      ArrowLeft: () => (bar ? moveDivider(bars.indexOf(bar), look.cuts[bars.indexOf(bar)] - 0.02) : look.cell--),
      ArrowRight: () => (bar ? moveDivider(bars.indexOf(bar), look.cuts[bars.indexOf(bar)] + 0.02) : look.cell++),
      ArrowUp: () => look.choice--,
      ArrowDown: () => look.choice++,
      "+": () => zoom(1.25), "=": () => zoom(1.25), "-": () => zoom(0.8),
      0: () => Object.assign(look, { zoom: 1, x: 0.5, y: 0.5 }),
      " ": () => {
        if (look.mode !== "flicker") return;
        if (look.paused || still.matches) look.phase++; else look.paused = true;
        flicker();
      },
    };
    const mode = MODES[Number(event.key) - 1], action = actions[event.key];
    if (event.key === " " && (event.target.closest("button, select") && look.mode !== "flicker")) return; // it presses the button
    if (!mode && !action) return;
    event.preventDefault();
    event.stopPropagation();
    if (mode) return setMode(mode);
    action();
    const shown = source.columns()[0];
    if (shown) look.cell = modulo(look.cell, shown.cells);
    draw();
  });

  // Wheel, drag and pinch
  panes.addEventListener("wheel", (event) => {
    const view = event.target.closest(".view");
    if (!view) return;
    event.preventDefault();
    const box = view.getBoundingClientRect();
    zoom(Math.exp(-clamp(event.deltaY, -100, 100) / 400), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  const fingers = new Map();
  panes.addEventListener("pointerdown", (event) => {
    const view = event.target.closest(".view");
    if (!view) return;
    const bar = event.target.closest(".divider");
    (bar ?? view).setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY, view, bar: [...view.querySelectorAll(".divider")].indexOf(bar) });
  });
  panes.addEventListener("pointermove", (event) => {
    const finger = fingers.get(event.pointerId);
    if (!finger) return;
    const box = finger.view.getBoundingClientRect();
    const others = [...fingers.entries()].filter(([id]) => id !== event.pointerId).map(([, other]) => other);
    if (finger.bar >= 0) moveDivider(finger.bar, (event.clientX - box.left) / box.width);
    else if (others.length) {
      const [other] = others, apart = (x, y) => Math.max(1, Math.hypot(x - other.x, y - other.y));
      const x = ((event.clientX + other.x) / 2 - box.left) / box.width, y = ((event.clientY + other.y) / 2 - box.top) / box.height;
      zoom(apart(event.clientX, event.clientY) / apart(finger.x, finger.y), x, y);
    } else pan((finger.x - event.clientX) / box.width / look.zoom, (finger.y - event.clientY) / box.height / look.zoom);
    Object.assign(finger, { x: event.clientX, y: event.clientY });
  });
  for (const end of ["pointerup", "pointercancel"]) panes.addEventListener(end, (event) => fingers.delete(event.pointerId));

  return { open, redraw: later };
};
