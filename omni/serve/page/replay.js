// Hears a piece of sound again; one at a time.

import { RATE, toFloat } from "./pcm.js";

export class Replay {
  constructor(onchange) {
    this.onchange = onchange;
    this.playing = null; // the name of what is heard
    this.source = null;
  }

  toggle(name, pcm) {
    const again = this.playing !== name;
    this.stop();
    if (again) this.play(name, pcm);
  }

  play(name, pcm) {
    this.context ??= new AudioContext();
    this.context.resume();
    const buffer = this.context.createBuffer(1, pcm.length, RATE);
    buffer.copyToChannel(toFloat(pcm), 0);
    const source = new AudioBufferSourceNode(this.context, { buffer });
    source.connect(this.context.destination);
    source.onended = () => source === this.source && this.stop();
    source.start();
    this.source = source;
    this.playing = name;
    this.onchange();
  }

  stop() {
    const { source } = this;
    if (!source) return;
    this.source = this.playing = null;
    source.onended = null;
    source.stop();
    source.disconnect();
    this.onchange();
  }
}
