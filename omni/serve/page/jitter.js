// The samples of one answer between their arrival and the loudspeaker. Plain arithmetic: knows no Web Audio, no socket.
//
//   const buffer = new JitterBuffer(48000);
//   buffer.begin(1);              // answers have rising numbers; all lower ones are stale from here on
//   buffer.push(1, samples);      // Float32Array, at the rate above
//   buffer.end(1);                // no more will come
//   buffer.pull(block);           // fills a block with what is to be heard now
//   buffer.flush();               // silence from the next block on, and nothing of answer 1 ever again

const START_SECONDS = 0.04; // buffered before an answer begins: two frames
const MOST_SECONDS = 0.64; // buffered before it goes on after running dry; doubles each time up to this
const FADE = 64; // samples: a cut or a gap comes without a click

export class JitterBuffer {
  constructor(rate, { start = START_SECONDS, most = MOST_SECONDS } = {}) {
    this.rate = rate;
    this.least = Math.round(start * rate);
    this.most = Math.round(most * rate);
    this.newest = 0; // the highest number seen
    this.underruns = 0;
    this.last = 0; // the sample heard last
    this.falling = 0; // samples of a fade that are still to come
    this.clear();
  }

  clear() {
    this.answer = 0; // none
    this.chunks = [];
    this.offset = 0; // into the first chunk
    this.buffered = 0;
    this.played = 0;
    this.target = this.least;
    this.playing = false;
    this.ended = false;
    this.rising = 0;
  }

  begin(answer) {
    if (answer <= this.newest) return;
    this.cut();
    this.newest = answer;
    this.answer = answer;
  }

  push(answer, samples) {
    if (answer !== this.answer || this.ended || samples.length === 0) return;
    this.chunks.push(samples);
    this.buffered += samples.length;
  }

  end(answer) {
    if (answer === this.answer) this.ended = true;
  }

  // Returns what was heard of the answer that it cut: {answer, played}, in samples.
  flush() {
    const heard = { answer: this.answer, played: this.played };
    this.cut();
    return heard;
  }

  cut() {
    if (this.playing) this.falling = FADE;
    this.clear();
  }

  get finished() {
    return this.answer > 0 && this.ended && this.buffered === 0;
  }

  // Fill the block; returns how many of its samples are the answer's. The rest is silence.
  pull(block) {
    if (!this.playing && this.buffered > 0 && (this.ended || this.buffered >= this.target)) {
      this.playing = true;
      this.rising = this.played > 0 ? FADE : 0;
      this.falling = 0;
    }
    const count = this.playing ? this.take(block) : 0;
    this.played += count;
    if (count > 0) this.last = block[count - 1];
    if (this.playing && count < block.length) this.pause();
    this.fade(block, count);
    return count;
  }

  take(block) {
    let count = 0;
    while (count < block.length && this.chunks.length > 0) {
      const chunk = this.chunks[0];
      const size = Math.min(block.length - count, chunk.length - this.offset);
      block.set(chunk.subarray(this.offset, this.offset + size), count);
      count += size;
      this.offset += size;
      if (this.offset === chunk.length) {
        this.chunks.shift();
        this.offset = 0;
      }
    }
    this.buffered -= count;
    for (let i = 0; i < count && this.rising > 0; i++) block[i] *= 1 - this.rising-- / FADE;
    return count;
  }

  pause() {
    this.playing = false;
    this.falling = FADE;
    if (this.ended) return;
    this.underruns++;
    this.target = Math.min(2 * this.target, this.most);
  }

  fade(block, from) {
    for (let i = from; i < block.length; i++) {
      this.falling = Math.max(0, this.falling - 1);
      block[i] = (this.last * this.falling) / FADE;
    }
  }
}
