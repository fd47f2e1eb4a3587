// The loudspeaker's side of the audio thread: a jitter buffer that is told what to do and says what it played.

import { JitterBuffer } from "./jitter.js";

const REPORT_SECONDS = 0.02;

class Speaker extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new JitterBuffer(sampleRate);
    this.sinceReport = 0;
    this.peak = 0;
    this.said = "";
    this.port.onmessage = ({ data }) => this.obey(data);
  }

  obey({ kind, answer, samples, id }) {
    if (kind === "begin") this.buffer.begin(answer);
    else if (kind === "push") this.buffer.push(answer, samples);
    else if (kind === "end") this.buffer.end(answer);
    else if (kind === "flush") this.port.postMessage({ kind: "flushed", id, ...this.buffer.flush() });
  }

  process(_, [[block]]) {
    this.buffer.pull(block);
    for (const sample of block) this.peak = Math.max(this.peak, Math.abs(sample));
    this.sinceReport += block.length;
    const { answer, playing, finished } = this.buffer;
    const state = `${answer} ${playing} ${finished}`;
    if (state !== this.said || (answer && !finished && this.sinceReport >= REPORT_SECONDS * sampleRate)) {
      this.said = state;
      this.report();
    }
    return true;
  }

  report() {
    const { answer, played, buffered, playing, finished, underruns } = this.buffer;
    this.port.postMessage({ kind: "progress", answer, played, buffered, playing, finished, underruns, peak: this.peak });
    this.sinceReport = 0;
    this.peak = 0;
  }
}

registerProcessor("omni-speaker", Speaker);
