// A conversation → the file to keep: what was said, heard and measured.

import { wav, zip } from "./archive.js";
import { RATE } from "./pcm.js";

export function archive(turns, settings, when = new Date()) {
  const entries = [];
  const told = turns.map((turn) => tell(turn, entries));
  const about = { made: when.toISOString(), sample_rate: RATE, settings, turns: told };
  const text = new TextEncoder().encode(JSON.stringify(about, null, 2) + "\n");
  const day = about.made.slice(0, 16).replace(/[T:]/g, "-");
  return { name: `conversation-${day}.zip`, bytes: zip([{ name: "conversation.json", bytes: text }, ...entries], when) };
}

function tell({ number, when, question, answer, soundForgotten, left }, entries) {
  const keep = (speech, name) => {
    if (!speech || speech.samples === 0) return null;
    const file = `${String(number).padStart(2, "0")}-${name}.wav`;
    entries.push({ name: file, bytes: wav(speech.pcm) });
    return file;
  };
  const told = { number, began: when.toISOString(), sound_forgotten: soundForgotten, left_memory: left };
  told.question = { file: keep(question, "question"), ms: question.ms };
  told.answer = answer && {
    file: keep(answer, "answer"),
    ms: answer.ms,
    text: answer.text,
    heard: answer.heardText,
    heard_ms: Math.round(answer.heardMs),
    interrupted: answer.cut,
    status: answer.status,
    error: answer.error,
    first_sound_ms: answer.firstAudioMs === null ? null : Math.round(answer.firstAudioMs),
    gaps: answer.underruns,
    server_timing: answer.timing,
  };
  return told;
}
