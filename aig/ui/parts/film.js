// The frames of a run that were shown, one a step, and which of them is shown now.
import { clamp } from "./numbers.js";

// How far a key goes from step to step.
export const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -Infinity, End: Infinity };

export class Film {
  #frames = [];
  at = 0;

  get length() { return this.#frames.length; }
  get frame() { return this.#frames[this.at]; }
  get ended() { return this.at >= this.length - 1; }
  get part() { return this.length > 1 ? this.at / (this.length - 1) : 0; } // of the way, in [0, 1]

  load(frames) {
    this.#frames = [...frames];
    this.at = 0;
  }

  // The next frame of a live run. The one that a stopped run leaves stands for the last step, it is none of its own.
  add(frame, stopped) {
    if (stopped && this.length) this.#frames[this.length - 1] = frame;
    else if (frame !== this.#frames.at(-1)) this.#frames.push(frame);
    this.at = Math.max(0, this.length - 1);
  }

  go(at) { this.at = clamp(Math.round(at), 0, Math.max(0, this.length - 1)); }
  goPart(part) { this.go(part * (this.length - 1)); }
}
