// One turn on the screen: the question as a small waveform, the answer as text with what was heard marked, both to be
// heard again.

const BARS = 36;

export class TurnView {
  constructor(turn, replay, again) {
    Object.assign(this, { turn, replay });
    this.element = document.createElement("li");
    this.element.innerHTML = `
      <p class="left" hidden>Too long ago: the model no longer remembers this.</p>
      <div class="question"><button class="play" type="button"></button><svg class="wave"></svg><span class="length"></span></div>
      <div class="answer" hidden>
        <p><span class="heard"></span><span class="rest"></span></p>
        <p class="error" hidden></p>
        <div class="foot"><button class="play" type="button"></button><svg class="wave"></svg><span class="length"></span>
          <span class="facts"></span><button class="again" type="button" hidden>Ask again</button></div>
      </div>`;
    this.question = new Clip(this.find(".question"), `question ${turn.number}`, () => turn.question, replay);
    this.answer = new Clip(this.find(".foot"), `answer ${turn.number}`, () => turn.answer, replay);
    this.find(".again").onclick = again;
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  remove() {
    this.element.remove();
  }

  draw() {
    const { turn } = this;
    const { answer } = turn;
    this.find(".left").hidden = !turn.left;
    this.question.draw(turn.askedAt > 0);
    this.find(".question").classList.toggle("live", turn.askedAt === 0);
    this.find(".answer").hidden = !answer;
    if (!answer) return;
    const heard = answer.heardText.length;
    setText(this.find(".heard"), answer.text.slice(0, heard));
    setText(this.find(".rest"), answer.text.slice(heard));
    this.find(".answer").classList.toggle("sounding", answer.sounding);
    this.find(".answer").classList.toggle("cut", answer.cut);
    this.find(".error").hidden = !answer.error;
    setText(this.find(".error"), answer.error ? inWords(answer.error) : "");
    this.find(".again").hidden = !answer.error;
    this.answer.draw(!answer.running && (answer.over || answer.whole));
    setText(this.find(".facts"), facts(answer).join(" · "));
  }
}

// A piece of sound: a button to hear it, its waveform, its length.
class Clip {
  constructor(element, name, speech, replay) {
    Object.assign(this, { element, name, speech, replay });
    this.drawn = -1; // samples in the waveform
    this.button = element.querySelector(".play");
    this.button.onclick = () => replay.toggle(this.name, speech().pcm);
  }

  draw(complete) {
    const { samples = 0, ms = 0 } = this.speech() ?? {};
    const playing = this.replay.playing === this.name;
    this.button.disabled = !complete || samples === 0;
    this.button.classList.toggle("playing", playing);
    this.button.setAttribute("aria-label", `${playing ? "Stop" : "Hear"} ${this.name}${playing ? "" : " again"}`);
    setText(this.element.querySelector(".length"), samples > 0 ? `${(ms / 1000).toFixed(1)} s` : "");
    if (complete && this.drawn !== samples) this.drawWave(samples);
  }

  drawWave(samples) {
    this.drawn = samples;
    const wave = this.element.querySelector(".wave");
    wave.setAttribute("viewBox", `0 0 ${4 * BARS} 24`);
    wave.setAttribute("aria-hidden", "true");
    const levels = samples > 0 ? peaks(this.speech().pcm, BARS) : [];
    const loudest = Math.max(0.05, ...levels);
    const path = levels.map((level, i) => {
      const height = Math.max(1, (10 * level) / loudest);
      return `M${4 * i + 2} ${12 - height}V${12 + height}`;
    });
    wave.innerHTML = `<path d="${path.join("")}"/>`;
  }
}

function peaks(pcm, count) {
  const size = Math.max(1, Math.ceil(pcm.length / count));
  return Array.from({ length: count }, (_, i) => {
    let peak = 0;
    for (let k = i * size; k < Math.min((i + 1) * size, pcm.length); k += 4) peak = Math.max(peak, Math.abs(pcm[k]));
    return peak / 32768;
  });
}

function facts(answer) {
  const said = [];
  if (answer.firstAudioMs !== null) said.push(`first sound ${Math.round(answer.firstAudioMs)} ms`);
  if (answer.cut) said.push(answer.heardMs > 0 ? `stopped after ${(answer.heardMs / 1000).toFixed(1)} s` : "you went on speaking");
  if (answer.status === "incomplete") said.push("ended at its longest");
  if (answer.underruns > 0) said.push(`${answer.underruns} ${answer.underruns === 1 ? "gap" : "gaps"}`);
  return said;
}

function inWords({ code, message }) {
  if (code === "worker_lost") return `The worker that was answering is gone, and no other could take over. ${message}`;
  if (code === "busy") return `All workers are busy. ${message}`;
  return message;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
