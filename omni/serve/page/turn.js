// One turn: a spoken question and its answer, with their sound, words and times. Plain data that grows.

import { RATE, join, toMs } from "./pcm.js";

const MS_PER_LETTER = 65; // of speech, while the length of an answer is not known yet

class Speech {
  constructor() {
    this.forget();
  }

  add(pcm) {
    this.pieces.push(pcm);
    this.samples += pcm.length;
  }

  forget() {
    this.pieces = [];
    this.samples = 0;
  }

  get ms() {
    return toMs(this.samples);
  }

  get pcm() {
    if (this.pieces.length > 1) this.pieces = [join(this.pieces)];
    return this.pieces[0] ?? new Int16Array(0);
  }
}

export class Turn {
  constructor(number) {
    this.number = number;
    this.question = new Speech();
    this.answer = null;
    this.beforeMs = 0; // of the question: from before the button was pressed
    this.askedAt = 0; // performance.now() at the end of the question
    this.abandoned = false; // spoken over before its answer began
    this.when = new Date();
    this.soundForgotten = false;
    this.left = false; // too long ago for the model to remember
  }

  forgetSound() {
    this.question.forget();
    this.answer?.forget();
    this.soundForgotten = true;
  }
}

export class Answer extends Speech {
  constructor(number, response, askedAt = 0) {
    super();
    this.number = number; // the player's
    this.id = response?.id ?? null;
    this.serverNumber = response?.omni?.number ?? null;
    this.askedAt = askedAt;
    this.itemId = null;
    this.text = "";
    this.status = "in_progress"; // then completed, cancelled, incomplete or failed
    this.error = null;
    this.whole = false; // all of its sound is here
    this.sounding = false;
    this.over = false; // heard to its end, cut, or failed
    this.cut = false; // spoken over
    this.heardMs = 0;
    this.heardLetters = 0;
    this.ends = []; // of its tokens: {letters, ms}, from a server that says so
    this.firstAudioMs = null;
    this.underruns = 0;
    this.timing = null; // the server's
  }

  get running() {
    return this.status === "in_progress";
  }

  get heardText() {
    return this.over && !this.cut && !this.error ? this.text : this.text.slice(0, this.heardLetters);
  }

  heardUntil(ms) {
    this.heardMs = Math.max(this.heardMs, Math.min(ms, this.ms));
    if (this.ends.length > 0) {
      this.heardLetters = Math.max(this.heardLetters, this.lettersWithin(this.heardMs));
      return;
    }
    const total = this.whole ? this.ms : Math.max(this.ms, this.text.length * MS_PER_LETTER);
    const share = total > 0 ? this.heardMs / total : 0;
    this.heardLetters = Math.max(this.heardLetters, wordEnd(this.text, Math.round(share * this.text.length)));
  }

  align(ends) {
    const signs = Array.from(this.text); // the server counts code points
    for (const [count, ms] of ends) this.ends.push({ letters: signs.slice(0, count).join("").length, ms });
  }

  // As the server remembers it: up to the last token that brought sound of its own.
  lettersWithin(ms) {
    if (this.whole && ms >= this.ms) return this.text.length;
    const end = (index) => this.ends[index]?.ms ?? 0;
    let count = this.ends.findLastIndex((each) => each.ms <= ms) + 1;
    while (count > 0 && end(count - 1) === end(count - 2)) count--;
    return this.ends[count - 1]?.letters ?? 0;
  }

  // Spoken over: only what was heard is kept.
  cutAt(ms) {
    this.heardUntil(ms);
    const heard = this.pcm.slice(0, Math.round((this.heardMs * RATE) / 1000));
    this.forget();
    this.add(heard);
  }

  finish({ status, status_details, omni }) {
    this.status = status;
    this.timing = omni?.timing ?? null;
    if (status === "failed") this.fail(status_details?.error?.code, status_details?.error?.message);
  }

  fail(code, message) {
    this.status = "failed";
    this.error = { code: code ?? "unknown", message: message ?? "The answer failed." };
  }
}

// The first end of a word at or after this letter; nothing of a word that has not begun.
function wordEnd(text, letter) {
  if (letter <= 0) return 0;
  const space = text.indexOf(" ", letter);
  return space < 0 ? text.length : space;
}
