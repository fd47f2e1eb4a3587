// Plays one answer as it arrives; can be silenced within a frame. Sits between the socket and the audio thread.
//
//   const player = await Player.open(context);       // an AudioContext
//   player.begin(1, 16000);                          // an answer and its rate; nothing of an earlier one is heard again
//   player.push(1, pcm);                             // Int16Array
//   player.end(1);
//   const { answer, ms } = await player.flush();     // silence; ms of the answer had been heard
//   player.onprogress = ({ answer, ms, bufferedMs, playing, finished, underruns, peak }) => …

import { toFloat } from "./pcm.js";
import { Resampler } from "./resampler.js";

const FLUSH_MS = 200; // then the audio thread stands still, and what it last reported is what was heard

export class Player {
  static async open(context) {
    await context.audioWorklet.addModule(new URL("speaker.js", import.meta.url));
    return new Player(context);
  }

  constructor(context) {
    this.context = context;
    this.onprogress = () => {};
    this.node = new AudioWorkletNode(context, "omni-speaker", { numberOfInputs: 0, outputChannelCount: [1] });
    this.node.connect(context.destination);
    this.node.port.onmessage = ({ data }) => this.hear(data);
    this.resampler = null;
    this.current = 0;
    this.heard = { answer: 0, ms: 0 };
    this.flushes = new Map(); // id → resolve
    this.flushed = 0;
  }

  begin(answer, rate) {
    this.current = answer;
    this.resampler = new Resampler(rate, this.context.sampleRate);
    this.tell({ kind: "begin", answer });
  }

  push(answer, pcm) {
    if (answer === this.current) this.send(answer, this.resampler.push(toFloat(pcm)));
  }

  end(answer) {
    if (answer !== this.current) return;
    this.send(answer, this.resampler.end());
    this.tell({ kind: "end", answer });
  }

  flush() {
    this.current = 0;
    const id = ++this.flushed;
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.settle(id, this.heard), FLUSH_MS);
      this.flushes.set(id, (heard) => {
        clearTimeout(timer);
        resolve(heard);
      });
      this.tell({ kind: "flush", id });
    });
  }

  // Seconds between the audio thread and the ear, as far as the browser knows.
  get latency() {
    return (this.context.baseLatency || 0) + (this.context.outputLatency || 0);
  }

  send(answer, samples) {
    if (samples.length > 0) this.tell({ kind: "push", answer, samples });
  }

  tell(message) {
    this.node.port.postMessage(message, message.samples ? [message.samples.buffer] : []);
  }

  hear({ kind, id, played, buffered, answer, ...more }) {
    const ms = this.audible(played, more.finished);
    if (kind === "flushed") return this.settle(id, { answer, ms });
    this.heard = { answer, ms };
    this.onprogress({ answer, ms, bufferedMs: this.toMs(buffered), ...more });
  }

  settle(id, heard) {
    this.flushes.get(id)?.(heard);
    this.flushes.delete(id);
  }

  audible(played, finished) {
    return Math.max(0, this.toMs(played) - (finished ? 0 : 1000 * this.latency));
  }

  toMs(samples) {
    return (1000 * samples) / this.context.sampleRate;
  }
}
