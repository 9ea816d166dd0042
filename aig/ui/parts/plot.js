// The plot of the curve editor: axes, the curve, a dot for every real step, and the points, each of which is a slider.
import { clamp, percent, tidy } from "./numbers.js";
import { ceiling, scales } from "./scales.js";

const SVG = "http://www.w3.org/2000/svg";
const FINE = 200; // straight pieces of the drawn curve

const set = (node, names) => { for (const name in names) node.setAttribute(name, names[name]); };
export const make = (tag, names) => {
  const node = document.createElementNS(SVG, tag);
  set(node, names);
  return node;
};

export const plot = (svg) => {
  const find = (selector) => svg.querySelector(selector);
  const [line, area, hair, handleBox, dotBox] = [".share", ".area", ".hair", ".handles", ".dots"].map(find);
  let size = { width: 0, height: 0 }, axes = ""; // axes: what they were drawn for

  const drawAxes = ({ left, right, place }, top) => {
    const wanted = `${top} ${size.width} ${size.height}`;
    if (axes === wanted) return;
    axes = wanted;
    const shares = { 0: 0, 1: 1, top };
    for (const node of svg.querySelectorAll("[data-at]")) {
      const [, y] = place(0, shares[node.dataset.at]);
      if (node.dataset.at === "top") node.style.display = top > 1.01 ? "" : "none";
      if (node.tagName === "line") set(node, { x1: left, x2: right, y1: y, y2: y });
      else set(node, { x: left - 9, y: y + 4 });
    }
    find("text[data-at=top]").textContent = `${top}×`;
    set(find(".noise"), { x: left, y: size.height - 4 });
    set(find(".image"), { x: right, y: size.height - 4 });
  };

  const newHandle = () => {
    const handle = make("g", { class: "handle", role: "slider", tabindex: 0, "aria-valuemin": 0, "aria-valuemax": 100 });
    const rings = Object.entries({ hit: 22, halo: 12, knob: 6.5 });
    handle.append(...rings.map(([name, r]) => make("circle", { class: name, r })));
    const hint = make("title", {});
    hint.textContent = "Drag or use the arrow keys; double click or Delete removes, Enter adds another";
    handle.append(hint);
    return handle;
  };
  const focus = (index) => { handleBox.children[index]?.focus({ preventScroll: true }); };
  const heldIn = (node) => [...handleBox.children].indexOf(node);

  const drawHandles = ({ place }, share, points) => {
    const held = heldIn(document.activeElement);
    while (handleBox.children.length > points.length) handleBox.lastChild.remove();
    if (held >= points.length) focus(points.length - 1); // else the next key would reach nobody
    while (handleBox.children.length < points.length) handleBox.append(newHandle());
    points.forEach(([x, y], i) => {
      const [left, height] = place(x, Math.min(1, share(x))), handle = handleBox.children[i];
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

  const drawDots = ({ place }, share, progress) => {
    const radius = clamp(90 / progress.length, 2, 3.6);
    if (dotBox.children.length !== progress.length) dotBox.replaceChildren(...progress.map(() => make("circle", { class: "dot", r: radius })));
    progress.forEach((u, i) => {
      const [x, y] = place(u, share(u)), dot = dotBox.children[i], g = Math.min(1, share(u)).toFixed(2);
      set(dot, { cx: x.toFixed(1), cy: y.toFixed(1) });
      if (dot.dataset.g !== g) { dot.dataset.g = g; dot.style.setProperty("--g", g); }
    });
  };

  return {
    focus,
    heldIn,
    resize(room) { size = room; },
    scales: (share) => scales(size, ceiling(share)),
    // share: what the curve is now; progress: of the real steps; mark: the progress that is pointed at, null for none.
    draw({ share, points, progress, mark }) {
      if (!size.width) return;
      const top = ceiling(share), scale = scales(size, top), { left, right, floor, place } = scale;
      const corners = Array.from({ length: FINE + 1 }, (_, i) => place(i / FINE, share(i / FINE)).map((at) => at.toFixed(1)));
      const path = `M${corners.join("L")}`;
      set(line, { d: path });
      set(area, { d: `${path}L${right},${floor}L${left},${floor}Z` });
      drawDots(scale, share, progress);
      drawAxes(scale, top);
      drawHandles(scale, share, points);
      hair.style.display = mark === null ? "none" : "";
      if (mark === null) return;
      const [x, y] = place(mark, share(mark));
      set(hair, { x1: x, x2: x, y1: y, y2: floor });
    },
  };
};
