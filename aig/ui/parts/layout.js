// How the viewer divides its columns and its room; pure, no page needed.

export const MODES = ["side", "slider", "difference", "flicker"];

// Every choice of columns that a mode can show, each a list of their indices: all and each alone side by side, pairs elsewhere,
// under the slider triples too.
export const choices = (mode, count) => {
  const all = [...Array(count).keys()];
  const pairs = all.flatMap((a) => all.slice(a + 1).map((b) => [a, b]));
  if (mode === "side") return [all, ...(count > 1 ? all.map((a) => [a]) : [])];
  if (mode !== "slider" || count < 3) return pairs.length ? pairs : [all];
  const triples = pairs.flatMap(([a, b]) => all.slice(b + 1).map((c) => [a, b, c]));
  return [...triples, ...pairs];
};

// Left, top, width and height of a cell in its column's mosaic.
export const cut = ({ across, width, height }, cell) => {
  const row = Math.floor(cell / across);
  return [(cell - row * across) * width, row * height, width, height];
};

// As many panes as asked in a room, each as large as fits: how many stand in a row, and how many screen pixels wide each is,
// a whole multiple of the image where that is not much smaller. density: screen pixels of a CSS pixel; gap and caption in CSS pixels.
export const arrange = ({ count, room, image, density, gap, caption }) => {
  const ratio = image.height / image.width;
  let best = 0, across = 1;
  for (let n = 1; n <= count; n++) {
    const rows = Math.ceil(count / n);
    const width = Math.min((room.width - gap * (n - 1)) / n, ((room.height - gap * (rows - 1)) / rows - caption) / ratio);
    if (width > best + 0.5) [best, across] = [width, n];
  }
  const steps = Math.floor((best * density) / image.width);
  const width = steps >= 2 ? steps * image.width : Math.max(16, Math.floor(best * density));
  return { across, width, height: Math.round(width * ratio) };
};
