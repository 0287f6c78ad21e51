// The race track: each arm's compute time as a lane on one clock. Prefill first, then one cell per step.

class Track {
  constructor(canvas, onPick) {
    this.canvas = canvas;
    this.run = null;
    this.onPick = onPick;
    canvas.addEventListener("click", (event) => {
      if (!this.run || !this.scale) return;
      const box = canvas.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const arm = Math.max(0, Math.min(this.run.arms.length - 1, Math.floor(y / this.pitch)));
      onPick(arm, x / this.scale);
    });
  }

  draw(run, clock, styles) {
    this.run = run;
    const canvas = this.canvas, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = canvas.clientWidth || 300;
    this.pitch = 26;
    const height = this.pitch * Math.max(1, run.arms.length) + 18;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
      canvas.style.height = `${height}px`;
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const end = Math.max(run.clockEnd, 1);
    this.scale = (width - 8) / (end * 1.02);
    context.font = "11px system-ui, sans-serif";
    context.textBaseline = "middle";
    run.arms.forEach((arm, index) => {
      const y = index * this.pitch + 3, lane = this.pitch - 8;
      const color = styles.arms[index];
      context.fillStyle = styles.line;
      context.fillRect(0, y, width, lane);
      if (arm.last < 0) return;
      context.fillStyle = color;
      context.globalAlpha = 0.35;
      context.fillRect(0, y, arm.clock[0] * this.scale, lane);
      context.globalAlpha = 0.85;
      for (let t = 1; t <= arm.last; t++) {
        const x0 = arm.clock[t - 1] * this.scale, x1 = arm.clock[t] * this.scale;
        context.fillRect(x0, y, Math.max(0.4, x1 - x0 - (x1 - x0 > 3 ? 1 : 0)), lane);
      }
      context.globalAlpha = 1;
      context.fillStyle = styles.text;
      for (let t = 1; t <= arm.last; t++) {
        // update steps: a notch on the lower edge, so that they show without color
        if (arm.update[t]) context.fillRect(arm.clock[t - 1] * this.scale, y + lane - 4, Math.max(2, (arm.clock[t] - arm.clock[t - 1]) * this.scale - 1), 4);
      }
      if (arm.end) {
        const x = arm.clockNow * this.scale;
        context.fillRect(x, y - 2, 2, lane + 4);
      }
    });
    // axis
    context.fillStyle = styles.muted;
    const step = niceStep(end / 5);
    const base = run.arms.length * this.pitch + 8;
    for (let ms = 0; ms * this.scale <= width - 30; ms += step) {
      context.fillRect(ms * this.scale, base - 8, 1, 4);
      context.textAlign = ms === 0 ? "left" : "center";
      context.fillText(end >= 2000 ? `${+(ms / 1000).toFixed(2)} s` : `${Math.round(ms)} ms`, ms * this.scale, base + 3);
    }
    if (clock !== null && clock !== undefined) {
      context.fillStyle = styles.text;
      context.fillRect(clock * this.scale - 0.75, 0, 1.5, run.arms.length * this.pitch);
    }
  }
}

function niceStep(raw) {
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1e-6)));
  for (const factor of [1, 2, 5, 10]) if (factor * power >= raw) return factor * power;
  return 10 * power;
}
