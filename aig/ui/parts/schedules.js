// The schedules of aig/schedules.py in the browser, so that a curve follows the finger without a round trip. The server's
// parser decides what is valid; tests/front/schedules.json holds both to the same answers.
import { clamp } from "./numbers.js";

// What Python's str.strip removes.
const SPACE = "[\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000]+";
const strip = (text) => text.replace(new RegExp("^" + SPACE), "").replace(new RegExp(SPACE + "$"), "");

// The number a word stands for, NaN if none: no sign, nan, inf or underscore.
const read = (word) => {
  const plain = strip(word);
  return plain.length <= 40 && /^(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(plain) ? Number(plain) : NaN;
};

// A number as Python writes it, without a trailing ".0".
export const format = (number) =>
  number !== 0 && number < 1e-4 ? number.toExponential().replace(/e-(\d)$/, "e-0$1") : String(number);

const clip = (share) => clamp(share, 0, 1);

// Index of the segment of the points that holds progress u.
const segment = (points, u) => {
  let low = 0, high = points.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (points[middle][0] <= u) low = middle; else high = middle;
  }
  return low;
};

const straightLines = (points) => (u) => {
  const i = segment(points, u), [x, y] = points[i], [next, end] = points[i + 1];
  return y + ((u - x) * (end - y)) / (next - x);
};

// Monotone cubic interpolation: slopes by Fritsch and Butland (SIAM J. Sci. Stat. Comput. 5(2), 1984, doi:10.1137/0905021),
// those of the ends by Moler (Numerical Computing with MATLAB, 2004, pchiptx), the same choices as scipy's
// PchipInterpolator.
const pchip = (points) => {
  const last = points.length - 1, width = [], rise = [], slope = [];
  for (let k = 0; k < last; k++) {
    width[k] = points[k + 1][0] - points[k][0];
    rise[k] = (points[k + 1][1] - points[k][1]) / width[k];
  }
  const end = (h, after, m, next) => {
    const d = ((2 * h + after) * m - h * next) / (h + after);
    if (Math.sign(d) !== Math.sign(m)) return 0;
    return Math.sign(m) !== Math.sign(next) && Math.abs(d) > 3 * Math.abs(m) ? 3 * m : d;
  };
  if (last === 1) slope.push(rise[0], rise[0]);
  else {
    slope[0] = end(width[0], width[1], rise[0], rise[1]);
    slope[last] = end(width[last - 1], width[last - 2], rise[last - 1], rise[last - 2]);
    for (let k = 1; k < last; k++) {
      const before = 2 * width[k] + width[k - 1], after = width[k] + 2 * width[k - 1]; // weights of a harmonic mean
      slope[k] = rise[k - 1] * rise[k] > 0 ? (before + after) / (before / rise[k - 1] + after / rise[k]) : 0;
    }
  }
  return (u) => {
    const i = segment(points, u), t = u - points[i][0], h = width[i];
    const bend = (slope[i] + slope[i + 1] - 2 * rise[i]) / h;
    return clip(points[i][1] + t * (slope[i] + t * ((rise[i] - slope[i]) / h - bend + (t * bend) / h)));
  };
};

// The schedule through points [[x, y], ...]: { name, share, points, straight }.
export const drawn = (points, straight) => ({
  name: "points:" + points.map(([x, y]) => format(x) + "," + format(y)).join(";") + (straight ? ";linear" : ""),
  share: straight ? straightLines(points) : pchip(points),
  points,
  straight,
});

const readPoints = (plain, limits) => {
  const parts = plain.slice("points:".length).split(";");
  const straight = parts.at(-1) === "linear";
  if (straight) parts.pop();
  const points = parts.map((part) => part.split(",").map(read));
  const valid =
    points.length >= 2 && points.length <= limits.points &&
    points.every((point) => point.length === 2 && point[1] <= 1) && // NaN is not
    points[0][0] === 0 && points.at(-1)[0] === 1 &&
    points.every(([x], i) => i === 0 || x - points[i - 1][0] >= limits.gap);
  return valid ? drawn(points, straight) : null;
};

// The schedule that a text names: { name, share } and, if it is a drawn one, { points, straight }; null if it names none.
export const parse = (text, limits) => {
  if (typeof text !== "string" || text.length > limits.text) return null;
  const plain = strip(text).toLowerCase();
  if (plain.startsWith("points:")) return readPoints(plain, limits);
  const [family, ...words] = plain.split("_");
  const numbers = words.map(read), [a, b] = numbers;
  const families = {
    base: [0, true, () => 0],
    draft: [0, true, () => 1],
    linear: [0, true, (u) => u],
    cosine: [0, true, (u) => (1 - Math.cos(Math.PI * u)) / 2],
    power: [1, 0.01 <= a && a <= 100, (u) => u ** a],
    step: [1, a <= 1, (u) => Number(u >= a)],
    constant: [1, a <= 3, () => a],
    sigmoid: [2, 0.1 <= a && a <= 100 && b <= 1, (u) => {
      const logistic = (v) => 1 / (1 + Math.exp(-a * (v - b)));
      return (logistic(u) - logistic(0)) / (logistic(1) - logistic(0));
    }],
  };
  if (!Object.hasOwn(families, family)) return null;
  const [count, valid, share] = families[family];
  return numbers.length === count && valid ? { name: [family, ...numbers.map(format)].join("_"), share } : null;
};

// Where to take hold of a schedule: its points, or few that draw it closely. Drawn shares end at 1.
export const handles = (schedule) => {
  if (schedule.points) return { points: schedule.points.map((point) => [...point]), straight: schedule.straight };
  const at = (u) => [u, Number(clip(schedule.share(u)).toFixed(3))];
  const [family, number] = schedule.name.split("_"), edge = Number(number);
  if (family === "step" && edge > 0) {
    const inner = edge < 1 ? [[edge - 0.01, 0], [edge, 1]] : [[0.99, 0]];
    const kept = inner.map(([x, y]) => [Number(x.toFixed(4)), y]).filter(([x]) => x >= 0.01 && x <= 0.99);
    return { points: [[0, 0], ...kept, [1, 1]], straight: false };
  }
  const spaced = [1, 2, 4, 5, 10].map((parts) => Array.from({ length: parts + 1 }, (_, i) => at(i / parts)));
  const close = (points) => {
    const share = pchip(points);
    return Array.from({ length: 21 }, (_, i) => i / 20).every((u) => Math.abs(share(u) - clip(schedule.share(u))) < 0.02);
  };
  return { points: spaced.find(close) ?? spaced.at(-1), straight: false };
};

// The name, one of the named ones or constant_W, of a drawn curve that equals it; of any other schedule its own; else null.
export const official = (schedule, names, limits) => {
  if (!schedule.points) return schedule.name === "power_1" ? "linear" : schedule.name;
  const [[, first]] = schedule.points, flat = schedule.points.every(([, y]) => y === first);
  const probes = Array.from({ length: 101 }, (_, i) => i / 100).concat(schedule.points.map(([x]) => x));
  return [...names, ...(flat ? [`constant_${format(first)}`] : [])].find((name) => {
    const { share } = parse(name, limits);
    return probes.every((u) => Math.abs(share(u) - schedule.share(u)) < 1e-9);
  }) ?? null;
};

// Progress of each real step: i/T, or i/(T-1) when closed.
export const progressOf = (steps, closed) =>
  closed && steps === 1 ? [1] : Array.from({ length: steps }, (_, i) => i / (steps - closed));
