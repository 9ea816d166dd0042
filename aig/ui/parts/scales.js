// Between the numbers of a curve, progress and share, and places in its plot, in pixels from the upper left; pure.
import { clamp, tidy } from "./numbers.js";

const GRID = 0.05; // what dragging snaps to
const MARGIN = { left: 40, right: 12, top: 12, bottom: 24 };

// The top of the axis of shares: 1, or more where the curve goes higher.
export const ceiling = (share) => Math.max(1, Math.ceil(20 * Math.max(share(0), share(0.5), share(1)) - 1e-9) / 20);

// The scales of a plot of this size whose axis of shares ends at top.
export const scales = ({ width, height }, top) => {
  const left = MARGIN.left, right = width - MARGIN.right, floor = height - MARGIN.bottom, tall = floor - MARGIN.top;
  return {
    left, right, floor,
    place: (u, share) => [left + u * (right - left), floor - (share / top) * tall],
    read: (x, y) => [(x - left) / (right - left), ((floor - y) / tall) * top],
  };
};

export const snap = (number, freely) => (freely ? Math.round(number * 1000) / 1000 : tidy(Math.round(number / GRID) * GRID));

// The index of the place nearest to [x, y] and within reach, -1 if none.
export const nearest = (places, [x, y], reach) => {
  const away = places.map(([left, height]) => Math.hypot(x - left, y - height)), index = away.indexOf(Math.min(...away));
  return away[index] <= reach ? index : -1;
};

const GAP = 0.01; // between the progress of neighbouring points

// The points with one moved towards [x, y]: ends keep their progress, others their distance from their neighbours.
export const moved = (points, index, [x, y]) => {
  const low = points[index - 1]?.[0] + GAP, high = points[index + 1]?.[0] - GAP;
  const free = index > 0 && index < points.length - 1 && low <= high;
  const place = [free ? tidy(clamp(x, low, high)) : points[index][0], tidy(clamp(y, 0, 1))];
  return points.map((point, i) => (i === index ? place : point));
};

// The index at which [x, y] would be another point, -1 if there is no room.
export const gapFor = (points, x) => {
  const index = points.findIndex(([other]) => other > x);
  return index < 1 || tidy(x - points[index - 1][0]) < GAP || tidy(points[index][0] - x) < GAP ? -1 : index;
};
