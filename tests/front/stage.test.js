// The logic of the player and of the viewer.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import { query } from "../../aig/ui/compare/address.js";
import { Film, STEPS } from "../../aig/ui/parts/film.js";
import { MODES, arrange, choices, cut } from "../../aig/ui/parts/layout.js";
import { settingsOf } from "../../aig/ui/parts/png.js";

const loaded = (...frames) => {
  const film = new Film();
  film.load(frames);
  return film;
};

test("an empty film shows nothing and goes nowhere", () => {
  const film = new Film();
  film.go(3);
  assert.deepEqual([film.length, film.at, film.frame, film.part, film.ended], [0, 0, undefined, 0, true]);
});

test("a film begins at its beginning and stays between its ends", () => {
  const film = loaded("a", "b", "c");
  assert.deepEqual([film.frame, film.part, film.ended], ["a", 0, false]);
  const shown = [STEPS.ArrowRight, STEPS.ArrowUp, STEPS.ArrowRight, STEPS.ArrowLeft, STEPS.End, STEPS.Home].map((step) => {
    film.go(film.at + step);
    return film.frame;
  });
  assert.deepEqual(shown, ["b", "c", "c", "b", "c", "a"]);
  film.goPart(0.6);
  assert.deepEqual([film.frame, film.part], ["b", 0.5]);
});

test("a live run is shown as it grows, and the frame of a stopped one replaces the last", () => {
  const film = loaded("old");
  film.load([]);
  for (const frame of ["1", "2", "2"]) film.add(frame, false);
  assert.deepEqual([film.length, film.frame], [2, "2"]);
  film.add("stopped", true);
  assert.deepEqual([film.length, film.frame, film.ended], [2, "stopped", true]);
  const unseen = new Film();
  unseen.add("stopped", true);
  assert.equal(unseen.length, 1);
});

test("frames are copied, not lent", () => {
  const frames = ["a"], film = loaded(...frames);
  film.add("b", false);
  assert.deepEqual(frames, ["a"]);
});

test("every mode offers the columns that it can show", () => {
  assert.deepEqual(choices("side", 3), [[0, 1, 2], [0], [1], [2]]);
  assert.deepEqual(choices("slider", 3), [[0, 1, 2], [0, 1], [0, 2], [1, 2]]);
  assert.deepEqual(choices("difference", 3), [[0, 1], [0, 2], [1, 2]]);
  assert.equal(choices("slider", 6).length, 20 + 15);
  for (const mode of MODES) assert.deepEqual(choices(mode, 1), [[0]]);
});

test("a cell is cut from its row and column", () => {
  assert.deepEqual(cut({ across: 3, width: 16, height: 20 }, 5), [32, 20, 16, 20]);
  assert.deepEqual(cut({ across: 1, width: 16, height: 20 }, 0), [0, 0, 16, 20]);
});

test("panes are as large as fits, in whole multiples of the image", () => {
  const room = (width, height) => ({ width, height }), image = { width: 64, height: 64 };
  const given = { image, density: 1, gap: 14, caption: 34 };
  assert.deepEqual(arrange({ ...given, count: 3, room: room(1300, 560) }), { across: 3, width: 384, height: 384 });
  assert.deepEqual(arrange({ ...given, count: 3, room: room(350, 1300) }), { across: 1, width: 320, height: 320 });
  assert.deepEqual(arrange({ ...given, count: 1, room: room(1300, 560), density: 2 }), { across: 1, width: 1024, height: 1024 });
  assert.deepEqual(arrange({ ...given, count: 1, room: room(100, 100) }), { across: 1, width: 66, height: 66 });
  assert.deepEqual(arrange({ ...given, count: 1, room: room(0, 0) }).width, 16);
  const wide = arrange({ ...given, image: { width: 64, height: 32 }, count: 2, room: room(600, 600) });
  assert.deepEqual(wide, { across: 1, width: 512, height: 256 });
});

test("an address keeps what else it held", () => {
  assert.equal(query("", "v1!seed=7"), "?run=v1!seed=7");
  assert.equal(query("?__theme=dark&run=v1!seed=1", "v1!seed=7!prompt=a+robot"), "?__theme=dark&run=v1!seed=7!prompt=a+robot");
});

const pictures = JSON.parse(readFileSync(new URL("pictures.json", import.meta.url), "utf8"))
  .map(([text, settings]) => [new Uint8Array(Buffer.from(text, "base64")), settings]);

test("settings are read from the pictures that Python writes", () => {
  for (const [bytes, settings] of pictures) assert.equal(settingsOf(bytes), settings);
});

test("what is no whole PNG is refused, wherever it is cut", () => {
  const [[bytes]] = pictures;
  for (const other of [new Uint8Array(), new Uint8Array(40), new TextEncoder().encode("GIF89a".padEnd(40))]) {
    assert.throws(() => settingsOf(other), /no PNG/);
  }
  for (let length = 20; length < bytes.length; length++) {
    try {
      assert.ok(["", pictures[0][1]].includes(settingsOf(bytes.subarray(0, length))));
    } catch (problem) {
      assert.match(problem.message, /no PNG|broken/);
    }
  }
  const endless = new Uint8Array(60).fill(0xff);
  endless.set([0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a]);
  assert.throws(() => settingsOf(endless), /broken/);
});
