// What undo and redo go through: the texts of a field in the order in which they were settled.
const LONGEST = 200;

export class Past {
  #texts;
  #present = 0;

  constructor(text) { this.#texts = [text]; }

  get text() { return this.#texts[this.#present]; }
  get first() { return this.#present === 0; }
  get last() { return this.#present === this.#texts.length - 1; }

  add(text) {
    if (text === this.text) return;
    this.#texts = [...this.#texts.slice(0, this.#present + 1), text].slice(-LONGEST);
    this.#present = this.#texts.length - 1;
  }

  // Go back (-1) or on (1); whether there was anywhere to go.
  go(by) {
    if (!(this.#present + by in this.#texts)) return false;
    this.#present += by;
    return true;
  }
}
