// What the visitor may choose, kept in this browser, and how it is said to the server.

const KEY = "omni.settings";

export const DEFAULTS = {
  mode: "push", // or "free"
  voice: "default",
  adaptor: "", // who hears, where there are several; "" is the checkpoint's own
  temperature: 0,
  chunk: "", // units in an answer's first piece of sound; "" is the server's choice
  longest: "", // tokens; "" is the server's limit
  silence: 500, // ms that end a turn, hands-free
  threshold: 0.5, // of the probability that it is speech, hands-free
};

export function load() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(KEY)) };
  } catch {
    return { ...DEFAULTS }; // storage is blocked, or holds something else
  }
}

export function store(settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // blocked: they last as long as the page
  }
}

// The fields of session.update. `omni`: the session's own such field, where the server knows more than OpenAI's events.
export function toSession(settings, handsFree, omni) {
  const format = { type: "audio/pcm", rate: 16000 };
  const turn_detection = handsFree && {
    type: "server_vad",
    threshold: settings.threshold,
    silence_duration_ms: settings.silence,
  };
  const session = {
    type: "realtime",
    output_modalities: ["audio"],
    max_output_tokens: settings.longest === "" ? "inf" : settings.longest,
    audio: { input: { format, turn_detection: turn_detection || null }, output: { format, voice: settings.voice } },
  };
  if (!omni) return session;
  const first_chunk = settings.chunk === "" ? null : settings.chunk; // null: the server's choice
  const ours = { binary_audio: true, first_chunk };
  if (omni.adaptors?.length) ours.adaptor = omni.adaptors.includes(settings.adaptor) ? settings.adaptor : null;
  return { ...session, temperature: settings.temperature, omni: ours };
}
