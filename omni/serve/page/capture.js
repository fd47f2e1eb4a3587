// The microphone's side of the audio thread: any rate and number of channels → 20 ms frames of int16 at 16 kHz.

import { RATE, toInt16 } from "./pcm.js";
import { Resampler } from "./resampler.js";

const FRAME = 320; // samples: 20 ms

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.resampler = new Resampler(sampleRate, RATE);
    this.frame = new Float32Array(FRAME);
    this.filled = 0;
    this.alive = true;
    this.port.onmessage = () => (this.alive = false); // whatever it says: the microphone was closed
  }

  process([channels]) {
    if (channels.length > 0) for (const sample of this.resampler.push(mono(channels))) this.add(sample);
    return this.alive;
  }

  add(sample) {
    this.frame[this.filled++] = sample;
    if (this.filled < FRAME) return;
    this.filled = 0;
    const pcm = toInt16(this.frame);
    const level = Math.sqrt(this.frame.reduce((sum, value) => sum + value * value, 0) / FRAME);
    this.port.postMessage({ pcm, level }, [pcm.buffer]);
  }
}

function mono(channels) {
  if (channels.length === 1) return channels[0];
  return channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
}

registerProcessor("omni-capture", Capture);
