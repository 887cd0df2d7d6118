// Beside the space: the video with tracks and reprojections, and the fan of one point against time.

function fit(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1, w = Math.round(width * ratio), h = Math.round(height * ratio);
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

const css = (rgb, alpha = 1) => `rgba(${rgb.map((c) => Math.round(255 * c)).join(",")},${alpha})`;

class Film {
  constructor(canvas, motion) {
    this.canvas = canvas; this.motion = motion; this.images = [];
    motion.frames.forEach((text, i) => { const image = new Image(); image.src = "data:image/jpeg;base64," + text; this.images[i] = image; });
  }

  ready() { return Promise.all(this.images.map((image) => image.decode())); }

  draw(t, chosen, colourOf, picked) {
    const [H, W] = this.motion.size, scale = Math.min(366 / W, 300 / H), pen = fit(this.canvas, W * scale, H * scale);
    this.canvas.style.width = `${W * scale}px`; this.canvas.style.height = `${H * scale}px`;
    if (this.images[t]) { pen.drawImage(this.images[t], 0, 0, W * scale, H * scale); pen.fillStyle = "rgba(8,10,14,.28)"; pen.fillRect(0, 0, W * scale, H * scale); }
    else { pen.fillStyle = "#20262f"; pen.fillRect(0, 0, W * scale, H * scale); }
    for (const k of chosen) for (let n = 0; n < this.motion.N; n++) {
      const p = this.motion.project(k, n, t);
      if (!p) continue;
      pen.fillStyle = css(colourOf(k, n, t * this.motion.perFrame), picked < 0 || n === picked ? 0.85 : 0.25);
      pen.beginPath(); pen.arc(p[0] * scale, p[1] * scale, n === picked ? 3 : 1.7, 0, 7); pen.fill();
    }
    for (let n = 0; n < this.motion.N; n++) {
      if (!this.motion.seen(n, t * this.motion.perFrame)) continue;
      const x = this.motion.tracks[(t * this.motion.N + n) * 2] * scale, y = this.motion.tracks[(t * this.motion.N + n) * 2 + 1] * scale;
      pen.strokeStyle = n === picked ? "#fff" : "rgba(255,255,255,.55)"; pen.lineWidth = n === picked ? 1.8 : 0.8;
      pen.beginPath(); pen.arc(x, y, n === picked ? 7 : 3.2, 0, 7); pen.stroke();
    }
  }

  // The observed point nearest to a place on the canvas.
  nearest(x, y, t) {
    const [H] = this.motion.size, scale = this.canvas.clientHeight / H;
    let best = -1, least = 14;
    for (let n = 0; n < this.motion.N; n++) {
      const i = (t * this.motion.N + n) * 2, d = Math.hypot(this.motion.tracks[i] * scale - x, this.motion.tracks[i + 1] * scale - y);
      if (d < least) { least = d; best = n; }
    }
    return best;
  }
}

// Three digits, and no more than fit left of an axis.
const short = (v) => (Math.abs(v) < 0.1 ? v.toFixed(3) : v.toPrecision(3));

class Fan {
  constructor(canvas, motion) { this.canvas = canvas; this.motion = motion; }

  draw(n, chosen, s, style) {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight, pen = fit(this.canvas, width, height), { S } = this.motion;
    if (n < 0 || chosen.length === 0) return;
    const left = 46, right = 6, row = (height - 14) / 3, x = (i) => left + (width - left - right) * i / (S - 1);
    const names = ["x", "y", "z"], what = ["right", "down", "ahead"];
    for (let axis = 0; axis < 3; axis++) {
      const top = 4 + axis * row, tall = row - 10;
      const [low, quarter, middle, upper, high] = this.motion.bands(n, axis, chosen, [0.05, 0.25, 0.5, 0.75, 0.95]);
      let least = Math.min(...low), most = Math.max(...high);
      const room = Math.max(0.08 * (most - least), 1e-4 * Math.abs(most), 1e-9); least -= room; most += room;
      const y = (v) => top + tall * (1 - (v - least) / (most - least));
      // Where the point was hidden.
      pen.fillStyle = style.hidden;
      for (let t = 0; t < this.motion.T; t++) if (!this.motion.seen(n, t * this.motion.perFrame)) pen.fillRect(x((t - 0.5) * this.motion.perFrame), top, x(this.motion.perFrame) - x(0), tall);
      const area = (a, b, alpha) => {
        pen.fillStyle = css(style.band, alpha); pen.beginPath();
        for (let i = 0; i < S; i++) pen.lineTo(x(i), y(a[i]));
        for (let i = S - 1; i >= 0; i--) pen.lineTo(x(i), y(b[i]));
        pen.fill();
      };
      area(low, high, 0.25); area(quarter, upper, 0.35);
      pen.lineWidth = 1.6; pen.strokeStyle = css(style.band); pen.beginPath();
      for (let i = 0; i < S; i++) pen.lineTo(x(i), y(middle[i]));
      pen.stroke();
      pen.strokeStyle = style.text; pen.lineWidth = 1; pen.beginPath(); pen.moveTo(x(s), top); pen.lineTo(x(s), top + tall); pen.stroke();
      pen.fillStyle = style.text; pen.font = "11px system-ui"; pen.textAlign = "left"; pen.fillText(`${names[axis]} ${what[axis]}`, left + 4, top + 11);
      pen.fillStyle = style.faint; pen.textAlign = "right";
      pen.fillText(short(most - room), left - 5, top + 9); pen.fillText(short(least + room), left - 5, top + tall);
    }
  }
}
