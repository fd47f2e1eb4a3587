// The level of what is said or heard, as bars that run outwards from the button.

const BAR = 4; // pixels, with its gap
const FLOOR_DB = -50;

export class Scope {
  constructor(canvas, button) {
    Object.assign(this, { canvas, button });
    this.levels = []; // the newest first
    this.ticking = false;
    this.spoken = 0;
  }

  // level: 0 … 1, of a 20 ms frame.
  push(level) {
    const shown = Math.max(0, 1 - (20 * Math.log10(Math.max(level, 1e-6))) / FLOOR_DB);
    this.levels.unshift(shown);
    this.levels.length = Math.min(this.levels.length, 200);
    if (!this.ticking) {
      this.ticking = true;
      requestAnimationFrame(() => this.draw());
    }
  }

  draw() {
    this.ticking = false;
    const { canvas, levels } = this;
    const scale = window.devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const paint = canvas.getContext("2d");
    paint.scale(scale, scale);
    paint.fillStyle = getComputedStyle(canvas).color;
    const inner = this.button.clientWidth / 2 + 8;
    const room = width / 2 - inner;
    for (let i = 0; i * BAR < room; i++) {
      const tall = Math.max(2, (levels[i] ?? 0) * height * 0.8);
      paint.globalAlpha = 1 - (i * BAR) / room;
      for (const x of [width / 2 - inner - i * BAR, width / 2 + inner + i * BAR])
        paint.fillRect(x - 1, (height - tall) / 2, 2, tall);
    }
    this.tell(levels[0] ?? 0);
  }

  tell(level) {
    this.button.style.setProperty("--level", level.toFixed(2));
    if (performance.now() - this.spoken < 250) return;
    this.spoken = performance.now();
    this.canvas.setAttribute("aria-valuenow", String(Math.round(100 * level)));
  }
}
