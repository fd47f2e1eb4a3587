// What the microphone gave, addressed by time: pieces of it can be cut out later. Forgets what is older than its limit.

import { RATE, join } from "./pcm.js";

export class Recording {
  constructor(seconds) {
    this.limit = seconds * RATE;
    this.clear();
  }

  clear() {
    this.pieces = [];
    this.first = 0; // position of the oldest sample that is kept
    this.length = 0; // of everything since the start
  }

  push(pcm) {
    this.pieces.push(pcm);
    this.length += pcm.length;
    while (this.length - this.first - this.pieces[0].length >= this.limit) this.first += this.pieces.shift().length;
  }

  // The samples between two times since the start, in ms.
  cut(fromMs, toMs) {
    const at = (ms) => Math.max(0, Math.round((ms * RATE) / 1000) - this.first);
    return join(this.pieces).slice(at(fromMs), at(toMs));
  }
}
