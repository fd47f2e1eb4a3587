// The live tab: <omni-live>, the element that shows a conversation and lets one talk. Fills its own shadow tree, so that
// neither Gradio's styles nor ours reach each other; follows Gradio's colours, dark or light.

import { save } from "./archive.js";
import { archive } from "./keep.js";
import { Conversation } from "./conversation.js";
import { Replay } from "./replay.js";
import { Scope } from "./scope.js";
import * as settings from "./settings.js";
import { TalkButton } from "./talk_button.js";
import { TurnView } from "./turn_view.js";

const HERE = new URL(".", import.meta.url);
const ICONS = {
  microphone: "M12 15a4 4 0 0 0 4-4V6a4 4 0 0 0-8 0v5a4 4 0 0 0 4 4Zm7-4a7 7 0 0 1-14 0M12 18v4m-4 0h8",
  download: "M12 3v12m-5-5 5 5 5-5M4 20h16",
  anew: "M12 5v14M5 12h14",
  tune: "M4 7h9m4 0h3M4 17h3m4 0h9M15 5v4M9 15v4",
};
const MARKUP = `
  <link rel="stylesheet" href="${new URL("page.css", HERE)}">
  <section class="talk" aria-label="Conversation">
    <header>
      <fieldset class="modes"><legend class="hidden">How to talk</legend>
        <label><input type="radio" name="mode" value="push"><span>Push to talk</span></label>
        <label><input type="radio" name="mode" value="free"><span>Hands-free</span></label>
      </fieldset>
      <span class="grow"></span>
      ${iconButton("download", "Download the conversation")}
      ${iconButton("anew", "New conversation")}
      ${iconButton("tune", "Settings", 'aria-expanded="false" aria-controls="settings"')}
    </header>
    <form id="settings" hidden>
      <label>Voice <select name="voice"></select></label>
      <label hidden>Who hears you <select name="adaptor"></select></label>
      <label>Temperature <output></output><input name="temperature" type="range" min="0" max="1.5" step="0.1"></label>
      <label>First piece of sound, Ω, in units
        <input name="chunk" type="number" min="1" max="400" step="1" inputmode="numeric"></label>
      <label>Longest answer, in tokens
        <input name="longest" type="number" min="1" step="1" inputmode="numeric" placeholder="the server's limit"></label>
      <label>Hands-free: silence that ends your turn <output></output>
        <input name="silence" type="range" min="200" max="2000" step="50"></label>
      <label>Hands-free: how sure it must be that you speak <output></output>
        <input name="threshold" type="range" min="0.1" max="0.95" step="0.05"></label>
    </form>
    <div class="turns" tabindex="0" role="log" aria-label="What was said">
      <div class="empty"><p class="hello">Say something.</p>
        <p>The answer comes by voice while it is still being thought of, and you may interrupt it.</p>
        <p class="try">“What is your name?”</p></div>
      <ol></ol>
    </div>
    <div class="notice" role="alert" hidden><p></p><button type="button"></button></div>
    <footer>
      <div class="figure"><b id="first">–</b><span>first sound</span></div>
      <div class="stage">
        <canvas role="meter" aria-label="Sound level" aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"></canvas>
        <button id="talk" type="button"><span class="ring"></span>${icon("microphone")}
          <span class="bars" aria-hidden="true"><i></i><i></i><i></i><i></i></span></button>
      </div>
      <div class="figure"><b id="buffer">–</b><span>buffered</span></div>
      <div class="state"><p role="status"></p><button id="stop" type="button" hidden>Stop <kbd>Esc</kbd></button></div>
    </footer>
  </section>`;

const HINTS = {
  push: { idle: "Hold to talk, or click to begin and to end", speaking: "Speaking … press to interrupt" },
  free: { idle: "Click once, then just talk", speaking: "Speaking … talk to interrupt" },
  both: { opening: "Opening the microphone …", open: "Listening for you …", thinking: "Thinking …" },
};

class OmniLive extends HTMLElement {
  connectedCallback() {
    if (this.shadowRoot) return;
    this.attachShadow({ mode: "open" }).innerHTML = MARKUP;
    const lacking = whatIsLacking();
    if (lacking) return this.giveUp(lacking);
    this.settings = settings.load();
    this.views = [];
    this.pending = false;
    this.scope = new Scope(this.find("canvas"), this.find("#talk"));
    this.conversation = new Conversation({
      url: socketAddress(),
      settings: this.settings,
      onchange: () => this.changed(),
      onlevel: (level) => this.scope.push(level),
    });
    this.replay = new Replay(() => this.changed());
    this.button = new TalkButton(this.find("#talk"), this.conversation, () => this.settings.mode);
    this.wire();
    this.conversation.link.open();
    this.changed();
  }

  find(selector) {
    return this.shadowRoot.querySelector(selector);
  }

  wire() {
    this.find("#download").onclick = () => this.download();
    this.find("#anew").onclick = () => this.startAnew();
    this.find("#stop").onclick = () => this.conversation.interrupt();
    this.find("#tune").onclick = () => this.toggleSettings();
    this.find(".notice button").onclick = () => this.act();
    for (const radio of this.shadowRoot.querySelectorAll("[name=mode]")) {
      radio.checked = radio.value === this.settings.mode;
      radio.onchange = () => this.changeMode(radio.value);
    }
    this.fillSettings();
    this.find("#settings").oninput = () => this.showValues();
    this.find("#settings").onchange = () => this.takeSettings();
    this.find("#settings").onsubmit = (event) => event.preventDefault();
    this.addEventListener("keydown", (event) => event.key === "Escape" && this.conversation.interrupt());
    setInterval(() => this.conversation.link.state === "waiting" && this.changed(), 500);
  }

  // --- drawing: at most once per frame of the screen -----------------------------------------------------------------

  changed() {
    if (this.pending || !this.conversation) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.draw();
    });
  }

  draw() {
    const { phase, turns, latest, bufferedMs } = this.conversation;
    if (phase === "listening" || phase === "speaking") this.replay.stop();
    this.find(".talk").dataset.phase = phase;
    this.setText("[role=status]", this.hint(phase));
    this.setText("#first", latest?.firstAudioMs == null ? "–" : `${Math.round(latest.firstAudioMs)} ms`);
    this.setText("#buffer", latest?.sounding ? `${(bufferedMs / 1000).toFixed(1)} s` : "–");
    this.find("#stop").hidden = phase !== "speaking" && phase !== "thinking";
    this.find("#download").disabled = this.find("#anew").disabled = turns.length === 0;
    this.find(".empty").hidden = turns.length > 0;
    this.button.draw();
    this.drawTurns(turns);
    this.drawNotice();
    this.drawVoices();
    this.drawAdaptors();
  }

  setText(selector, text) {
    const element = this.find(selector);
    if (element.textContent !== text) element.textContent = text;
  }

  hint(phase) {
    const { mode } = this.settings;
    if (phase === "listening") {
      if (mode === "free") return "Listening …";
      return this.button.held ? "Listening … release to send" : "Listening … click to send";
    }
    return HINTS[mode][phase] ?? HINTS.both[phase];
  }

  drawTurns(turns) {
    const log = this.find(".turns");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    while (this.views.length > 0 && this.views.at(-1).turn !== turns[this.views.length - 1]) this.views.pop().remove();
    for (const turn of turns.slice(this.views.length)) {
      const view = new TurnView(turn, this.replay, () => this.conversation.again(turn));
      this.views.push(view);
      this.find("ol").append(view.element);
    }
    for (const view of this.views) view.draw();
    if (atEnd) log.scrollTop = log.scrollHeight;
  }

  drawNotice() {
    const { text, action } = this.whatToSay();
    const notice = this.find(".notice");
    notice.hidden = !text;
    this.setText(".notice p", text);
    this.setText(".notice button", action ?? "Dismiss");
    this.act = action ? () => this.conversation.link.open() : () => this.dismiss();
  }

  whatToSay() {
    const { notice, link } = this.conversation;
    const seconds = Math.max(0, Math.ceil((link.retryAt - Date.now()) / 1000));
    const when = link.state === "waiting" ? `Next try in ${seconds} s.` : "Trying now …";
    if (notice?.kind === "microphone") return { text: notice.text };
    if (link.state === "open") return { text: notice?.text ?? "" };
    if (link.reason === "full") return { text: `All places of the cluster are taken. ${when}`, action: "Try now" };
    if (link.reason === "restart") return { text: `The server restarts; the conversation goes on in a moment. ${when}`, action: "Try now" };
    if (link.reason === "lost") return { text: `${link.words || "The connection is lost."} ${when}`, action: "Try now" };
    if (link.reason === "idle")
      return { text: "Nothing was said for a while, so the line was closed. It opens again when you talk.", action: "Connect" };
    if (link.reason === "refused") return { text: link.words || "The server refuses this page.", action: "Connect again" };
    return { text: notice?.text ?? "" };
  }

  dismiss() {
    this.conversation.notice = null;
    this.changed();
  }

  // --- what the visitor chooses --------------------------------------------------------------------------------------

  changeMode(mode) {
    this.conversation.release();
    this.conversation.rest();
    this.settings = { ...this.settings, mode };
    settings.store(this.settings);
    this.conversation.apply(this.settings);
    this.changed();
  }

  toggleSettings() {
    const form = this.find("#settings");
    form.hidden = !form.hidden;
    this.find("#tune").setAttribute("aria-expanded", String(!form.hidden));
  }

  fillSettings() {
    for (const field of this.find("#settings").elements)
      if (field.name && field.type !== "select-one") field.value = this.settings[field.name];
    this.showValues();
  }

  showValues() {
    for (const field of this.shadowRoot.querySelectorAll("#settings input[type=range]")) {
      const unit = field.name === "silence" ? " ms" : "";
      field.parentElement.querySelector("output").textContent = field.value + unit;
    }
  }

  takeSettings() {
    const form = this.find("#settings");
    if (!form.reportValidity()) return;
    const chosen = { ...this.settings };
    for (const field of form.elements) {
      if (field.name === "voice") chosen.voice = field.value || chosen.voice;
      else if (field.name === "adaptor") chosen.adaptor = field.options.length ? field.value : chosen.adaptor;
      else if (field.name) chosen[field.name] = field.value === "" ? "" : Number(field.value);
    }
    this.settings = chosen;
    settings.store(chosen);
    this.conversation.apply(chosen);
  }

  drawVoices() {
    const { session } = this.conversation;
    const field = this.find("[name=voice]");
    const names = session?.omni?.voices ?? [session?.audio?.output?.voice ?? this.settings.voice];
    const offered = [...new Set([this.settings.voice, ...names])];
    if (offered.join() !== [...field.options].map((option) => option.value).join()) {
      field.replaceChildren(...offered.map((name) => new Option(name, name)));
      field.value = this.settings.voice;
    }
    const piece = session?.omni?.first_chunk;
    this.find("[name=chunk]").placeholder = piece ? `the server's: ${piece}` : "the server's choice";
  }

  drawAdaptors() {
    const field = this.find("[name=adaptor]");
    const names = this.conversation.session?.omni?.adaptors ?? [];
    if (!this.conversation.session || names.join() === [...field.options].slice(1).map((option) => option.value).join()) return;
    field.replaceChildren(new Option("as usual", ""), ...names.map((name) => new Option(name, name)));
    field.value = names.includes(this.settings.adaptor) ? this.settings.adaptor : "";
    field.parentElement.hidden = names.length === 0;
  }

  startAnew() {
    this.replay.stop();
    this.conversation.forget();
    for (const view of this.views.splice(0)) view.remove();
  }

  download() {
    const { name, bytes } = archive(this.conversation.turns, this.settings);
    save(name, bytes, "application/zip");
  }

  giveUp(lacking) {
    const notice = this.find(".notice");
    notice.hidden = false;
    this.setText(".notice p", `${lacking} The other tab takes recordings and files.`);
    notice.querySelector("button").hidden = true;
    for (const selector of ["footer", "header", ".turns"]) this.find(selector).hidden = true;
    const tabs = document.querySelectorAll("[role=tab]");
    tabs[1]?.click();
  }
}

function whatIsLacking() {
  if (!window.isSecureContext) return "Live talk needs a secure address: https://, or localhost.";
  if (!window.AudioWorkletNode) return "This browser has no AudioWorklet, which live talk needs.";
  if (!window.WebSocket) return "This browser has no WebSocket, which live talk needs.";
  if (!navigator.mediaDevices?.getUserMedia) return "This browser gives pages no microphone.";
  return "";
}

function socketAddress() {
  const address = new URL("../live", HERE);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

function icon(name) {
  return `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
}

function iconButton(name, label, more = "") {
  return `<button id="${name}" class="icon" type="button" aria-label="${label}" title="${label}" ${more}>${icon(name)}</button>`;
}

customElements.define("omni-live", OmniLive);
