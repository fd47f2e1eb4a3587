// A conversation with the model: what was said, what was heard of it, and what is going on. Knows the events of
// /v1/realtime and who may speak when; knows no element of the page.
//
//   const talk = new Conversation({ url, settings, onchange, onlevel });
//   await talk.press(); talk.release();       // push to talk
//   await talk.listen(); talk.rest();         // hands-free, and its end
//   talk.interrupt();                         // silence
//   talk.phase                                // "idle", "opening", "open", "listening", "thinking" or "speaking"
//   talk.turns                                // [{number, question, answer}]
//
// The player's word counts for what was heard: an interrupted answer is cut there, here and in the model's memory.

import { Answer, Turn } from "./turn.js";
import { Link } from "./link.js";
import { Microphone, MicrophoneRefused } from "./microphone.js";
import { Player } from "./player.js";
import { RATE, fromBase64, toBase64, toMs } from "./pcm.js";
import { Recording } from "./recording.js";
import { toSession } from "./settings.js";

const BEFORE_PRESS_MS = 200; // people begin to speak as they press
const SHORTEST_MS = 150; // a shorter question is a slip of the finger
const LONGEST_WAITING = 30 * RATE; // samples that wait for a slow or broken line
const KEPT_SAMPLES = 20 * 60 * RATE; // of sound in the page's memory: 38 MB
const MICROPHONE_REST_MS = 60_000; // push to talk lets go of the microphone after so long
const TOLD_AGAIN = 8; // turns that a new session is told of after a broken line
const REPORT_MS = 200; // how often the server hears what was played
const HEADER = 12; // bytes before the sound of a binary message
const HARMLESS = new Set(["response_cancel_not_active", "input_audio_buffer_commit_empty"]);

export class Conversation {
  constructor({ url, settings, onchange, onlevel = () => {} }) {
    Object.assign(this, { settings, onchange, onlevel });
    this.turns = [];
    this.session = null; // as the server described it, once it is ready
    this.token = null; // to go on with this session on another line
    this.resuming = null; // {session, id, items, token} until the server has said whether it can
    this.notice = null; // {kind, text}
    this.handsFree = false; // listening without a button
    this.pressed = false;
    this.opening = false; // the microphone
    this.hearing = null; // the turn that is being spoken
    this.asked = null; // the turn whose answer is awaited or under way
    this.latest = null; // the answer that was created last
    this.answers = 0; // since the page was opened: the player's numbers
    this.recording = new Recording(60);
    this.outgoing = []; // frames that wait for the line
    this.waiting = 0; // samples in them
    this.sent = 0; // samples since the line was opened: the server's times count them
    this.streamStart = 0; // those sent before it began to listen hands-free
    this.reported = 0;
    this.bufferedMs = 0;
    this.link = new Link(url, {
      onopen: () => this.onopen(),
      onmessage: (message) => this.receive(message),
      onchange: () => this.onlink(),
    });
  }

  get phase() {
    if (this.opening) return "opening";
    if (this.hearing) return "listening";
    if (this.latest?.sounding) return "speaking";
    if (this.asked || (this.latest && !this.latest.over)) return "thinking";
    return this.handsFree ? "open" : "idle";
  }

  // --- what the visitor does -----------------------------------------------------------------------------------------

  async press() {
    if (this.pressed || this.opening) return;
    this.interrupt();
    if (!(await this.openMicrophone())) return;
    this.link.open();
    this.pressed = true;
    this.hearing = this.newTurn();
    this.link.send({ type: "input_audio_buffer.clear" });
    this.dropOutgoing();
    const before = this.recording.cut(toMs(this.recording.length) - BEFORE_PRESS_MS, toMs(this.recording.length));
    if (before.length > 0) this.say(before);
    this.hearing.beforeMs = this.hearing.question.ms;
    this.changed();
  }

  release() {
    if (!this.pressed) return;
    this.pressed = false;
    const turn = this.hearing;
    this.hearing = null;
    this.restLater();
    if (turn.question.ms - turn.beforeMs < SHORTEST_MS) {
      this.turns.pop();
      this.dropOutgoing();
      this.link.send({ type: "input_audio_buffer.clear" });
      this.note("short", "That was too short. Hold the button while you speak, or click it once to begin and once to end.");
      return;
    }
    this.ask(turn);
    if (this.session) {
      this.outgoing.push({ type: "input_audio_buffer.commit" }, { type: "response.create" });
      this.pump();
    } else this.dropOutgoing(); // a new session will be told of the whole question
    this.changed();
  }

  async listen() {
    if (this.handsFree || this.opening) return;
    if (!(await this.openMicrophone())) return;
    this.link.open();
    this.handsFree = true;
    this.startStream();
    this.changed();
  }

  rest() {
    if (!this.handsFree) return;
    this.handsFree = false;
    if (this.hearing) this.turns.pop();
    this.hearing = null;
    this.dropOutgoing();
    this.configure();
    this.link.send({ type: "input_audio_buffer.clear" });
    this.closeMicrophone();
    this.changed();
  }

  // Silence now; the model forgets what was not heard.
  interrupt(byHand = true) {
    const answer = this.latest;
    if (byHand && (this.asked || answer?.running)) this.link.send({ type: "response.cancel" });
    if (this.asked && this.asked.answer === null) this.asked.abandoned = true;
    this.asked = null;
    if (!answer || answer.over) return;
    answer.cut = answer.over = true;
    answer.sounding = false;
    this.player?.flush().then((heard) => this.keepHeard(answer, heard));
    this.changed();
  }

  // Ask for an answer to what was said last once more, after one that failed.
  again(turn) {
    turn.answer = null;
    this.ask(turn);
    this.link.send({ type: "response.create" });
    this.changed();
  }

  apply(settings) {
    this.settings = settings;
    this.configure();
  }

  // A new conversation: nothing of this one is remembered, here or there.
  forget() {
    this.interrupt();
    this.rest();
    this.turns = [];
    this.link.close();
    this.session = this.notice = this.asked = this.latest = this.token = null;
    this.link.open();
    this.changed();
  }

  // --- sound ---------------------------------------------------------------------------------------------------------

  async openSound() {
    if (!this.context) {
      this.context = new AudioContext({ latencyHint: "interactive" });
      this.player = await Player.open(this.context);
      this.player.onprogress = (progress) => this.played(progress);
    }
    if (this.context.state !== "running") await this.context.resume();
  }

  async openMicrophone() {
    clearTimeout(this.restTimer);
    if (this.microphone) return true;
    this.opening = true;
    this.changed();
    try {
      await this.openSound();
      this.recording.clear();
      this.microphone = await Microphone.open(this.context, (frame) => this.frame(frame));
      this.microphone.onlost = () => this.microphoneLost();
      this.clear("microphone");
      return true;
    } catch (error) {
      if (!(error instanceof MicrophoneRefused)) throw error;
      this.note("microphone", error.message);
      return false;
    } finally {
      this.opening = false;
      this.changed();
    }
  }

  closeMicrophone() {
    clearTimeout(this.restTimer);
    this.microphone?.close();
    this.microphone = null;
    this.onlevel(0);
  }

  restLater() {
    clearTimeout(this.restTimer);
    this.restTimer = setTimeout(() => this.pressed || this.handsFree || this.closeMicrophone(), MICROPHONE_REST_MS);
  }

  microphoneLost() {
    this.closeMicrophone();
    this.release();
    this.rest();
    this.note("microphone", "The microphone went away. Connect or allow it again, then press the button.");
  }

  frame({ pcm, level }) {
    this.recording.push(pcm);
    if (this.pressed || this.handsFree) {
      this.onlevel(level);
      this.say(pcm);
    }
  }

  say(pcm, isNew = true) {
    if (this.pressed && isNew) this.hearing.question.add(pcm);
    this.outgoing.push(pcm);
    this.waiting += pcm.length;
    while (this.waiting > LONGEST_WAITING) this.dropOldest();
    this.pump();
  }

  dropOldest() {
    const index = this.outgoing.findIndex((each) => each instanceof Int16Array);
    const [pcm] = this.outgoing.splice(index, 1);
    this.waiting -= pcm.length;
    this.note("slow", "The line is too slow for your voice: part of what you said was not sent.");
  }

  pump() {
    while (this.outgoing.length > 0 && this.session && this.link.takesMore) {
      const next = this.outgoing.shift();
      if (!(next instanceof Int16Array)) this.link.send(next);
      else {
        this.waiting -= next.length;
        this.sent += next.length;
        if (this.session.omni) this.link.sendPcm(next);
        else this.link.send({ type: "input_audio_buffer.append", audio: toBase64(next) });
      }
    }
  }

  dropOutgoing() {
    this.outgoing = [];
    this.waiting = 0;
  }

  played({ answer: number, ms, bufferedMs, playing, finished, underruns, peak }) {
    const answer = this.latest;
    this.bufferedMs = bufferedMs;
    if (!answer || answer.number !== number || answer.cut) return;
    if (playing && answer.firstAudioMs === null) answer.firstAudioMs = this.sinceAsked(answer) + 1000 * this.player.latency;
    answer.heardUntil(ms);
    answer.sounding = !finished && answer.firstAudioMs !== null;
    answer.underruns = underruns;
    if (finished) answer.over = true;
    this.report(answer, finished);
    this.onlevel(playing ? peak : 0);
    this.changed();
  }

  sinceAsked(answer) {
    return performance.now() - answer.askedAt;
  }

  report(answer, now) {
    if (!this.session?.omni || !answer.itemId) return;
    if (!now && performance.now() - this.reported < REPORT_MS) return;
    this.reported = performance.now();
    this.link.send({ type: "omni.playback", item_id: answer.itemId, played_ms: Math.floor(answer.heardMs) });
  }

  keepHeard(answer, { answer: number, ms }) {
    answer.cutAt(number === answer.number ? ms : answer.heardMs);
    if (answer.itemId) {
      const audio_end_ms = Math.floor(answer.heardMs);
      this.link.send({ type: "conversation.item.truncate", item_id: answer.itemId, content_index: 0, audio_end_ms });
    }
    this.changed();
  }

  // --- the line ------------------------------------------------------------------------------------------------------

  onopen() {
    this.session = this.resuming = null; // until it says who it is
    this.sent = 0;
  }

  onlink() {
    const { link } = this;
    if (link?.state === "waiting" || link?.state === "closed") this.brokeOff();
    this.changed();
  }

  // What was said so far stays on the page. What was asked but not answered is asked again on the next line.
  brokeOff() {
    const { asked, latest } = this;
    this.session = null;
    this.dropOutgoing();
    if (latest?.running) latest.fail("lost", "The line broke during this answer.");
    if (latest) this.player?.end(latest.number);
    if (asked?.answer) this.asked = null;
    if (this.handsFree && this.hearing) {
      this.turns.pop();
      this.hearing = null;
    }
  }

  // The server is there: with the session of before where it still has that, or with a new one, which knows nothing and
  // is told of the last turns. Then the question that is being spoken or waits.
  ready(session, items = null) {
    this.link.proven();
    this.session = session;
    this.resuming = null;
    if (this.handsFree) this.startStream();
    else this.configure();
    const over = this.turns.filter((turn) => turn !== this.asked && turn !== this.hearing);
    if (!items) for (const turn of over.slice(-TOLD_AGAIN)) for (const item of itemsOf(turn)) this.link.send(item);
    this.catchUp(items ?? new Set());
    this.pump();
  }

  catchUp(items) {
    if (this.pressed) {
      this.dropOutgoing();
      this.say(this.hearing.question.pcm, false);
    } else if (this.asked) {
      if (!items.has(this.asked.question.itemId)) for (const item of itemsOf(this.asked)) this.link.send(item);
      this.link.send({ type: "response.create" });
    }
  }

  startStream() {
    this.dropOutgoing();
    this.recording.clear();
    this.streamStart = toMs(this.sent);
    this.configure();
  }

  configure() {
    if (!this.session) return;
    const session = toSession(this.settings, this.handsFree, this.session.omni);
    this.link.send({ type: "session.update", event_id: "settings", session });
  }

  receive(message) {
    if (message instanceof ArrayBuffer) return this.hearBinary(new DataView(message));
    const handler = this.handlers[message.type];
    if (handler) {
      handler.call(this, message);
      this.changed();
    }
  }

  hearBinary(view) {
    const answer = this.latest;
    if (!answer || view.getUint32(0) !== answer.serverNumber) return; // of an answer that is no longer the last one
    this.hear(answer, new Int16Array(view.buffer.slice(HEADER)));
  }

  hear(answer, pcm) {
    if (answer.cut) return;
    if (answer.samples === 0) {
      this.player?.begin(answer.number, RATE);
    }
    answer.add(pcm);
    this.player?.push(answer.number, pcm);
  }

  handlers = {
    "session.created": ({ session }) => {
      if (!this.token) return this.ready(session);
      this.resuming = { session, id: this.token.session_id, items: new Set() };
      this.link.send({ type: "omni.session.resume", ...this.token }); // kept until the next one has come
    },
    "session.updated": ({ session }) => {
      if (this.resuming?.id === session.id) this.resuming.session = session;
      else if (this.session) this.session = session;
      this.clear("error");
    },
    "conversation.item.done": ({ item }) => this.resuming?.items.add(item.id),
    "omni.session.token": ({ session_id, token }) => {
      const { resuming } = this;
      if (resuming && resuming.id !== session_id) {
        resuming.token = { session_id, token }; // the new session's, in case it has to do
        return;
      }
      this.token = { session_id, token };
      if (!resuming) return;
      this.link.send({ type: "omni.session.acknowledge" });
      this.ready(resuming.session, resuming.items);
    },
    "omni.conversation.window": ({ left }) => {
      for (const turn of this.turns) if (left.includes(turn.question.itemId)) turn.left = true;
    },
    "input_audio_buffer.speech_started": ({ audio_start_ms }) => {
      this.interrupt(false);
      if (!this.handsFree) return;
      this.hearing = this.newTurn();
      this.hearing.startMs = audio_start_ms - this.streamStart;
    },
    "input_audio_buffer.speech_stopped": ({ audio_end_ms }) => {
      const turn = this.hearing;
      if (!this.handsFree || !turn) return;
      turn.question.add(this.recording.cut(turn.startMs, audio_end_ms - this.streamStart));
      this.hearing = null;
      this.ask(turn);
    },
    "input_audio_buffer.committed": ({ item_id }) => {
      if (this.asked) this.asked.question.itemId = item_id;
    },
    "response.created": ({ response }) => this.created(response),
    "response.output_item.added": ({ response_id, item }) => {
      const answer = this.answerOf(response_id);
      if (answer) answer.itemId = item.id;
    },
    "response.output_audio.delta": ({ response_id, delta }) => {
      const answer = this.answerOf(response_id);
      if (answer) this.hear(answer, fromBase64(delta));
    },
    "response.output_audio.done": ({ response_id }) => this.soundIsWhole(this.answerOf(response_id)),
    "response.output_audio_transcript.delta": ({ response_id, delta }) => {
      const answer = this.answerOf(response_id);
      if (answer && !answer.cut) answer.text += delta;
    },
    "omni.alignment.delta": ({ response_id, ends }) => {
      const answer = this.answerOf(response_id);
      if (answer && !answer.cut) answer.align(ends);
    },
    "response.done": ({ response }) => this.done(response),
    error: ({ error }) => {
      if (HARMLESS.has(error.code)) return;
      if (error.code === "session_not_resumable" && this.resuming) {
        this.token = this.resuming.token ?? null;
        return this.ready(this.resuming.session);
      }
      if (error.code === "store_lost" && this.resuming) return this.link.again(error.message); // with the same token
      this.note("error", error.message);
      if (error.event_id !== "settings" && this.asked?.answer === null) this.failed(this.asked, error);
    },
  };

  created(response) {
    const turn = this.asked || this.turns.findLast((each) => each.abandoned && each.answer === null);
    const answer = new Answer(++this.answers, response, turn?.askedAt ?? performance.now());
    this.latest?.sounding && this.player.flush(); // no sample of an earlier answer follows a new one
    if (this.latest) this.latest.over = true;
    this.latest = answer;
    if (turn) turn.answer = answer;
    if (!turn || turn.abandoned) answer.cut = answer.over = true;
    this.clear("full", "slow", "short", "error", "refused");
  }

  soundIsWhole(answer) {
    if (!answer || answer.cut) return;
    answer.whole = true;
    this.player?.end(answer.number);
  }

  done(response) {
    const answer = this.answerOf(response.id);
    if (!answer) return;
    answer.finish(response);
    this.soundIsWhole(answer);
    if (!answer.cut && answer.samples === 0) answer.over = true;
    if (this.asked?.answer === answer) this.asked = null;
    this.forgetOldSound();
  }

  failed(turn, error) {
    turn.answer = new Answer(++this.answers, null);
    turn.answer.fail(error.code, error.message);
    this.asked = null;
  }

  answerOf(id) {
    return this.latest?.id === id ? this.latest : null;
  }

  // --- small things --------------------------------------------------------------------------------------------------

  newTurn() {
    const turn = new Turn(this.turns.length + 1);
    this.turns.push(turn);
    return turn;
  }

  ask(turn) {
    turn.askedAt = performance.now();
    turn.abandoned = false;
    this.asked = turn;
  }

  forgetOldSound() {
    let kept = 0;
    for (const turn of this.turns.toReversed()) {
      kept += turn.question.samples + (turn.answer?.samples ?? 0);
      if (kept > KEPT_SAMPLES) turn.forgetSound();
    }
  }

  note(kind, text) {
    this.notice = { kind, text };
    this.changed();
  }

  clear(...kinds) {
    if (kinds.includes(this.notice?.kind)) this.notice = null;
  }

  changed() {
    this.onchange();
  }
}

// The events that tell a session of a turn: the question's sound, and of the answer the words that were heard.
function itemsOf({ question, answer }) {
  const item = (role, content) => ({ type: "conversation.item.create", item: { type: "message", role, content: [content] } });
  if (question.samples === 0) return [];
  const items = [item("user", { type: "input_audio", audio: toBase64(question.pcm) })];
  const text = answer?.heardText;
  if (text) items.push(item("assistant", { type: "output_text", text }));
  return items;
}
