// One rate → another, piece by piece, without a seam: the pieces joined equal the whole resampled at once.
//
//   const resampler = new Resampler(48000, 16000);
//   resampler.push(samples);      // Float32Array in, what can be said of it out; sample n lies at time n / to
//   resampler.end();              // the rest
//
// A windowed sinc in polyphase form: exact for every pair of whole rates.

const ZEROS = 16; // zero crossings on each side
const ROLLOFF = 0.94; // of the lower Nyquist frequency
const KAISER_BETA = 8;

export class Resampler {
  constructor(from, to) {
    const common = gcd(from, to);
    this.up = to / common;
    this.down = from / common;
    this.same = from === to;
    const scale = Math.min(1, to / from) * ROLLOFF;
    this.half = Math.ceil(ZEROS / scale); // input samples on each side
    this.phases = this.same ? [] : Array.from({ length: this.up }, (_, p) => taps(p / this.up, this.half, scale));
    this.reset();
  }

  reset() {
    this.held = new Float32Array(this.half - 1); // silence before the first sample
    this.position = 0; // of the next output's window in `held`, in input samples
    this.phase = 0;
  }

  push(samples) {
    if (this.same) return samples;
    const input = new Float32Array(this.held.length + samples.length);
    input.set(this.held);
    input.set(samples, this.held.length);
    const width = 2 * this.half;
    const out = [];
    while (this.position + width <= input.length) {
      const filter = this.phases[this.phase];
      let sum = 0;
      for (let k = 0; k < width; k++) sum += filter[k] * input[this.position + k];
      out.push(sum);
      this.phase += this.down;
      this.position += Math.floor(this.phase / this.up);
      this.phase %= this.up;
    }
    const used = Math.min(this.position, input.length);
    this.held = input.slice(used);
    this.position -= used;
    return Float32Array.from(out);
  }

  end() {
    const rest = this.push(new Float32Array(this.same ? 0 : this.half));
    this.reset();
    return rest;
  }
}

// Weights of the input samples -half+1 … half around an output that lies `fraction` after sample 0.
function taps(fraction, half, scale) {
  const weights = new Float32Array(2 * half);
  let sum = 0;
  for (let k = 0; k < 2 * half; k++) {
    const x = k - half + 1 - fraction;
    weights[k] = sinc(x * scale) * kaiser(x / half);
    sum += weights[k];
  }
  return weights.map((weight) => weight / sum);
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function kaiser(x) {
  return Math.abs(x) >= 1 ? 0 : bessel(KAISER_BETA * Math.sqrt(1 - x * x)) / bessel(KAISER_BETA);
}

function bessel(x) {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > 1e-9 * sum; k++) sum += term *= (x / (2 * k)) ** 2;
  return sum;
}

function gcd(a, b) {
  return b === 0 ? a : gcd(b, a % b);
}
