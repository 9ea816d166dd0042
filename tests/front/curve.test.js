// The arithmetic under the curve editor: scales, points and undo.
import assert from "node:assert/strict";
import test from "node:test";
import { clamp, modulo, percent, tidy, whole } from "../../aig/ui/parts/numbers.js";
import { Past } from "../../aig/ui/parts/past.js";
import { ceiling, gapFor, moved, nearest, scales, snap } from "../../aig/ui/parts/scales.js";

const SIZE = { width: 352, height: 136 }; // 300 x 100 within the margins

test("places and numbers belong together", () => {
  const { place, read, left, right, floor } = scales(SIZE, 1);
  assert.deepEqual([place(0, 0), place(1, 1), place(0.5, 0.25)], [[40, 112], [340, 12], [190, 87]]);
  assert.deepEqual([left, right, floor], [40, 340, 112]);
  for (const [u, share] of [[0, 0], [0.3, 0.7], [1, 1.5]]) {
    read(...place(u, share)).forEach((number, i) => assert.ok(Math.abs(number - [u, share][i]) < 1e-12));
  }
  assert.deepEqual(scales(SIZE, 2).place(0, 1), [40, 62]);
});

test("the axis of shares ends at 1, or just above a curve that goes higher", () => {
  assert.deepEqual([() => 0, (u) => u, () => 1, () => 1.01, () => 2.5].map(ceiling), [1, 1, 1, 1.05, 2.5]);
});

test("dragging snaps to the grid, or to thousandths", () => {
  assert.deepEqual([snap(0.41, false), snap(0.43, false), snap(0.4321, true), snap(-0.01, false)], [0.4, 0.45, 0.432, 0]);
});

test("the nearest point is taken within reach alone", () => {
  const places = [[0, 0], [100, 0], [100, 40]];
  assert.deepEqual([nearest(places, [97, 4], 12), nearest(places, [100, 25], 22), nearest(places, [50, 0], 22)], [1, 2, -1]);
});

test("points keep their distance, ends their progress, and shares stay in [0, 1]", () => {
  const points = [[0, 0], [0.4, 0.1], [1, 1]];
  assert.deepEqual(moved(points, 1, [0.5, 0.7]), [[0, 0], [0.5, 0.7], [1, 1]]);
  assert.deepEqual(moved(points, 1, [1.3, 2])[1], [0.99, 1]);
  assert.deepEqual(moved(points, 1, [-1, -1])[1], [0.01, 0]);
  assert.deepEqual(moved(points, 0, [0.5, 0.3])[0], [0, 0.3]);
  assert.deepEqual(moved(points, 2, [0.5, 0.3])[2], [1, 0.3]);
  assert.deepEqual(moved([[0, 0], [0.01, 0], [0.02, 0], [1, 1]], 1, [0.5, 0])[1], [0.01, 0]);
  assert.deepEqual(points[1], [0.4, 0.1]); // the points handed over are as they were
});

test("another point needs room", () => {
  const points = [[0, 0], [0.4, 0.1], [1, 1]];
  assert.deepEqual([0.2, 0.7, 0.405, 0.395, 0, 1, -1].map((x) => gapFor(points, x)), [1, 2, -1, -1, -1, -1, -1]);
});

test("undo and redo go through what was settled", () => {
  const past = new Past("a");
  assert.ok(past.first && past.last && !past.go(-1) && !past.go(1));
  for (const text of ["b", "b", "c"]) past.add(text);
  assert.ok(past.go(-1) && past.text === "b" && past.go(-1) && past.text === "a" && past.first && !past.go(-1));
  assert.ok(past.go(1) && past.text === "b");
  past.add("d"); // what could be redone is gone
  assert.ok(past.last && past.text === "d" && past.go(-1) && past.text === "b");
});

test("the past is bounded", () => {
  const past = new Past("0");
  for (let i = 1; i < 500; i++) past.add(String(i));
  let steps = 0;
  while (past.go(-1)) steps++;
  assert.equal(steps, 199);
  assert.equal(past.text, "300");
});

test("small arithmetic", () => {
  assert.deepEqual([clamp(-1, 0, 1), clamp(0.5, 0, 1), clamp(2, 0, 1)], [0, 0.5, 1]);
  assert.deepEqual([modulo(-1, 9), modulo(9, 9), modulo(4, 9)], [8, 0, 4]);
  assert.deepEqual([tidy(1 / 3), percent(0.39), percent(1 / 3)], [0.3333, "39%", "33.3333%"]);
  assert.deepEqual([1, 2, 3.002, 0.5, 1.5].map(whole), [true, true, true, false, false]);
});
