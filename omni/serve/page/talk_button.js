// The one big button. Push to talk: hold it (pointer, space, enter), or click it once to begin and once to end.
// Hands-free: click it to listen, and again to rest.

const CLICK_MS = 350; // shorter than this is a click, longer is holding

export class TalkButton {
  constructor(element, conversation, mode) {
    Object.assign(this, { element, conversation, mode });
    this.held = false;
    this.heldSince = 0;
    element.onpointerdown = (event) => {
      if (event.button !== 0 || mode() === "free") return;
      element.setPointerCapture(event.pointerId);
      this.down();
    };
    element.onpointerup = element.onpointercancel = () => this.up();
    element.onkeydown = (event) => this.key(event, () => !event.repeat && this.down());
    element.onkeyup = (event) => this.key(event, () => this.up());
    element.onclick = (event) => this.click(event);
    element.oncontextmenu = (event) => event.preventDefault(); // a long touch is holding
    window.addEventListener("blur", () => this.held && this.up(true));
  }

  key(event, act) {
    if (this.mode() === "free" || (event.key !== " " && event.key !== "Enter")) return;
    event.preventDefault();
    act();
  }

  async down() {
    const { conversation } = this;
    if (conversation.pressed) return conversation.release();
    this.held = true;
    this.heldSince = performance.now();
    await conversation.press();
    if (!this.held && !this.clicked) conversation.release(); // let go while the microphone opened
  }

  up(certainly = false) {
    if (!this.held) return;
    this.held = false;
    this.clicked = !certainly && performance.now() - this.heldSince < CLICK_MS;
    if (!this.clicked) this.conversation.release();
    this.draw();
  }

  click(event) {
    const { conversation } = this;
    if (this.mode() === "free") return conversation.handsFree ? conversation.rest() : conversation.listen();
    if (event.detail > 0) return; // the pointer's events have done it
    conversation.pressed ? conversation.release() : conversation.press(); // asked for by a screen reader
  }

  draw() {
    const { pressed, handsFree } = this.conversation;
    const free = this.mode() === "free";
    this.element.setAttribute("aria-pressed", String(pressed || handsFree));
    this.element.setAttribute("aria-label", free ? (handsFree ? "Stop listening" : "Listen to me") : "Talk");
  }
}
