// The socket to the page's server, opened again when it breaks. Knows close codes; knows nothing of what is said.
//
//   const link = new Link(url, { onopen, onmessage, onchange });
//   link.open();                     // and again: try now instead of waiting
//   link.send({ type: … }) / link.sendPcm(pcm)
//   link.state                       // "closed", "opening", "open" or "waiting" (until link.retryAt)
//   link.reason                      // why it is not open: "full", "restart", "lost", "idle", "refused"
//
// 1013 the cluster is full · 1012 it restarts: come back at once · 1000 idle, 1008 refused: not before the visitor wants it

const FIRST_WAIT_MS = { full: 4000, restart: 0, lost: 500 };
const LONGEST_WAIT_MS = 15_000;
const OPEN_MS = 15_000; // a handshake that takes longer counts as lost
const MOST_WAITING = 1 << 18; // bytes in the browser's own buffer: about eight seconds of speech

export class Link {
  constructor(url, { onopen = () => {}, onmessage, onchange }) {
    Object.assign(this, { url, onopen, onmessage, onchange });
    this.socket = null;
    this.timer = 0;
    this.failures = 0;
    this.query = ""; // added to the address: the token of a session to go on with
    this.become("closed", "");
    window.addEventListener("online", () => this.state === "waiting" && this.open());
  }

  open() {
    if (this.state === "open" || this.state === "opening") return;
    clearTimeout(this.timer);
    this.become("opening", this.reason);
    const socket = new WebSocket(this.url + this.query);
    socket.binaryType = "arraybuffer";
    const late = setTimeout(() => socket.close(), OPEN_MS);
    socket.onopen = () => {
      clearTimeout(late);
      this.become("open", "");
      this.onopen();
    };
    socket.onmessage = ({ data }) => this.onmessage(typeof data === "string" ? JSON.parse(data) : data);
    socket.onclose = ({ code, reason }) => {
      clearTimeout(late);
      if (socket === this.socket) this.lost(code, reason);
    };
    this.socket = socket;
  }

  // The other end works: the next break is a new one.
  proven() {
    this.failures = 0;
  }

  // The line is there, but not what is needed behind it: try again as if it had broken.
  again(words) {
    const { socket } = this;
    this.lost(0, words);
    socket?.close(1000);
  }

  close() {
    clearTimeout(this.timer);
    const { socket } = this;
    this.socket = null;
    socket?.close(1000);
    this.become("closed", "");
  }

  send(event) {
    if (this.state === "open") this.socket.send(JSON.stringify(event));
    return this.state === "open";
  }

  sendPcm(pcm) {
    this.socket.send(pcm);
  }

  get takesMore() {
    return this.state === "open" && this.socket.bufferedAmount < MOST_WAITING;
  }

  lost(code, words) {
    this.socket = null;
    this.words = words;
    const reason = why(code);
    if (reason === "idle" || reason === "refused") return this.become("closed", reason);
    const first = FIRST_WAIT_MS[reason] || (this.failures > 0 ? FIRST_WAIT_MS.lost : 0);
    const wait = Math.min(first * 2 ** this.failures, LONGEST_WAIT_MS);
    const spread = wait * (0.75 + Math.random() / 2); // all pages of a restarted server shall not come at once
    this.failures++;
    this.retryAt = Date.now() + spread;
    this.timer = setTimeout(() => this.open(), spread);
    this.become("waiting", reason);
  }

  become(state, reason) {
    this.state = state;
    this.reason = reason;
    this.onchange();
  }
}

function why(code) {
  if (code === 1000) return "idle";
  if (code === 1008) return "refused";
  if (code === 1012) return "restart";
  if (code === 1013) return "full";
  return "lost";
}
