// The hypotheses: control points and basis to places, and what is counted over all of them.
// K hypotheses   N points   M control points   T frames   S instants of the drawn paths (perFrame for each frame)

function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

class Motion {
  constructor(data) {
    Object.assign(this, data);
    for (const name of ["control", "basis", "cameras", "tracks", "visibility", "colours", "scale"]) this[name] = decode(data[name]);
    const { K, N, M, S } = this;
    // X = B c at every instant, once: [K, N, S, 3].
    this.paths = new Float32Array(K * N * S * 3);
    for (let i = 0; i < K * N; i++)
      for (let s = 0; s < S; s++)
        for (let m = 0; m < M; m++) {
          const b = this.basis[s * M + m];
          if (b === 0) continue;
          for (let a = 0; a < 3; a++) this.paths[(i * S + s) * 3 + a] += b * this.control[(i * M + m) * 3 + a];
        }
    this.mean = new Float32Array(N * S * 3);
    this.spread = new Float32Array(N * S);
    for (let n = 0; n < N; n++)
      for (let s = 0; s < S; s++) {
        let square = 0;
        for (let a = 0; a < 3; a++) {
          let sum = 0, sumSquare = 0;
          for (let k = 0; k < K; k++) { const x = this.paths[((k * N + n) * S + s) * 3 + a]; sum += x; sumSquare += x * x; }
          this.mean[(n * S + s) * 3 + a] = sum / K;
          square += Math.max(0, sumSquare / K - (sum / K) ** 2);
        }
        this.spread[n * S + s] = Math.sqrt(square * K / Math.max(1, K - 1));
      }
    this.extent();
  }

  // Where the points are, for the first look: medians are not led astray by a far background.
  extent() {
    const axes = [[], [], []];
    for (let n = 0; n < this.N; n++) for (let a = 0; a < 3; a++) axes[a].push(this.mean[n * this.S * 3 + a]);
    const at = (v, q) => v[Math.min(v.length - 1, Math.floor(q * v.length))];
    for (const v of axes) v.sort((x, y) => x - y);
    this.centre = axes.map((v) => at(v, 0.5));
    this.radius = Math.max(1e-6, ...axes.map((v) => at(v, 0.85) - at(v, 0.15)));
  }

  // The place of point n under hypothesis k (or the mean, k = -1) at instant s, which may lie between two.
  place(k, n, s, out) {
    const low = Math.min(this.S - 1, Math.floor(s)), high = Math.min(this.S - 1, low + 1), share = s - low;
    const from = k < 0 ? this.mean : this.paths, base = (k < 0 ? n : k * this.N + n) * this.S;
    for (let a = 0; a < 3; a++) out[a] = (1 - share) * from[(base + low) * 3 + a] + share * from[(base + high) * 3 + a];
    return out;
  }

  speed(k, n, s) {
    const from = k < 0 ? this.mean : this.paths, base = (k < 0 ? n : k * this.N + n) * this.S;
    const low = Math.max(0, Math.min(this.S - 2, Math.floor(s)));
    let square = 0;
    for (let a = 0; a < 3; a++) square += (from[(base + low + 1) * 3 + a] - from[(base + low) * 3 + a]) ** 2;
    const step = (this.seconds[this.T - 1] - this.seconds[0]) / Math.max(1, this.S - 1);
    return Math.sqrt(square) / Math.max(1e-9, step);
  }

  seen(n, s) { return this.visibility[Math.round(s / this.perFrame) * this.N + n] >= 0.5; }

  // World to camera of hypothesis k at frame t: rows of [R | t].
  camera(k, t) {
    if (this.frame === "camera") return [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0];
    const which = this.numCameras === 1 ? 0 : Math.max(0, k < 0 ? this.rank[0] : k);
    return this.cameras.subarray((which * this.T + t) * 12, (which * this.T + t + 1) * 12);
  }

  project(k, n, t) {
    const x = this.place(k, n, t * this.perFrame, [0, 0, 0]), c = this.camera(k, t), [fx, fy, cx, cy] = this.intrinsics;
    const p = [0, 4, 8].map((r) => c[r] * x[0] + c[r + 1] * x[1] + c[r + 2] * x[2] + c[r + 3]);
    return p[2] > 0 ? [fx * p[0] / p[2] + cx, fy * p[1] / p[2] + cy] : null;
  }

  // Quantiles over some hypotheses of one coordinate of a point, at every instant.
  bands(n, axis, chosen, levels) {
    const rows = levels.map(() => new Float32Array(this.S)), values = new Float32Array(chosen.length);
    for (let s = 0; s < this.S; s++) {
      chosen.forEach((k, i) => { values[i] = this.paths[((k * this.N + n) * this.S + s) * 3 + axis]; });
      values.sort();
      levels.forEach((q, i) => {
        const at = q * (values.length - 1), low = Math.floor(at), high = Math.min(values.length - 1, low + 1);
        rows[i][s] = values[low] + (at - low) * (values[high] - values[low]);
      });
    }
    return rows;
  }

  // Pale yellow does not show on a light ground, so there the scale ends before it.
  ramp(share) {
    const end = matchMedia("(prefers-color-scheme: light)").matches ? 0.8 : 1;
    const count = this.scale.length / 3, i = Math.round(end * Math.min(1, Math.max(0, share)) * (count - 1));
    return this.scale.subarray(3 * i, 3 * i + 3);
  }
}
