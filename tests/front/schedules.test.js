// The schedules of the browser against tests/front/schedules.json, which Python wrote.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { drawn, format, handles, official, parse, progressOf } from "../../aig/ui/parts/schedules.js";

const { limits, presets, schedules, progress } = JSON.parse(readFileSync(new URL("schedules.json", import.meta.url), "utf8"));
const apart = (a, b, places = 100) => Math.max(...Array.from({ length: places + 1 }, (_, i) => Math.abs(a(i / places) - b(i / places))));

test("texts name the same schedules, or none", () => {
  for (const [text, answer] of schedules) {
    const schedule = parse(text, limits);
    assert.equal(schedule?.name ?? null, answer?.name ?? null, text);
    if (!answer) continue;
    answer.shares.forEach((share, i) => {
      const found = schedule.share(i / (answer.shares.length - 1));
      assert.ok(Math.abs(found - share) < 1e-8, `${text}: ${found} at ${i}, not ${share}`);
    });
  }
});

test("only text is a schedule", () => {
  for (const other of [null, undefined, 7, ["linear"], {}]) assert.equal(parse(other, limits), null);
});

test("real steps are where Python has them", () => {
  for (const [steps, closed, places] of progress) assert.deepEqual(progressOf(steps, closed), places);
});

test("numbers are written as Python writes them", () => {
  assert.deepEqual([0, 1, 0.5, 1e-4, 1e-5, 1.5e-12].map(format), ["0", "1", "0.5", "0.0001", "1e-05", "1.5e-12"]);
});

test("the points to take hold of redraw a named curve closely", () => {
  for (const name of presets.filter((preset) => !preset.startsWith("step"))) {
    const schedule = parse(name, limits), { points, straight } = handles(schedule);
    assert.ok(apart(schedule.share, drawn(points, straight).share) < 0.03, name);
  }
});

test("a step is taken hold of at its edge", () => {
  assert.deepEqual(handles(parse("step_0.6", limits)).points, [[0, 0], [0.59, 0], [0.6, 1], [1, 1]]);
  assert.deepEqual(handles(parse("step_1", limits)).points, [[0, 0], [0.99, 0], [1, 1]]);
  assert.deepEqual(handles(parse("step_0", limits)).points, [[0, 1], [1, 1]]);
});

test("the points of a drawn curve are copied, not lent", () => {
  const schedule = parse("points:0,0;0.4,0.1;1,1", limits), { points } = handles(schedule);
  points[0][1] = 1;
  assert.equal(schedule.points[0][1], 0);
});

test("a drawn curve that equals a named one has its name", () => {
  const names = {
    "points:0,0;1,1": "linear", "points:0,0;0.5,0.5;1,1;linear": "linear", "points:0,0;1,0": "base", "points:0,1;0.3,1;1,1": "draft",
    "points:0,0.5;1,0.5": "constant_0.5", "points:0,0.3;1,0.3": "constant_0.3", "points:0,0;0.5,0.25;1,1": null, power_1: "linear",
    "power_3.30": "power_3.3",
  };
  for (const [text, name] of Object.entries(names)) assert.equal(official(parse(text, limits), presets, limits), name, text);
});
