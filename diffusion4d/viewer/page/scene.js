// The space: points, their paths, the camera, drawn with WebGL 2; and the eye that turns about them.

const SHADERS = {
  line: [`#version 300 es
    in vec3 place; in vec4 colour; in float at; in float point;
    uniform mat4 view; uniform float now, reach, strength, picked; out vec4 tint;
    void main() {
      gl_Position = view * vec4(place, 1.0);
      float near = exp(-abs(at - now) / reach);
      float own = picked < 0.0 ? 1.0 : (abs(point - picked) < 0.5 ? 3.0 : 0.5);
      tint = vec4(colour.rgb, min(1.0, strength * own * (0.22 + 0.78 * near)));
    }`, `#version 300 es
    precision mediump float; in vec4 tint; out vec4 pixel;
    void main() { pixel = vec4(tint.rgb * tint.a, tint.a); }`],
  dot: [`#version 300 es
    in vec3 place; in vec4 colour; in float size;
    uniform mat4 view; uniform float scale; out vec4 tint;
    void main() { gl_Position = view * vec4(place, 1.0); gl_PointSize = size * scale; tint = colour; }`,
    `#version 300 es
    precision mediump float; in vec4 tint; out vec4 pixel;
    void main() {
      float r = length(gl_PointCoord - 0.5) * 2.0, a = tint.a * (1.0 - smoothstep(0.8, 1.0, r));
      if (a < 0.01) discard;
      pixel = vec4(tint.rgb * a, a);
    }`],
  image: [`#version 300 es
    in vec3 place; in vec2 uv; uniform mat4 view; out vec2 from;
    void main() { gl_Position = view * vec4(place, 1.0); from = uv; }`, `#version 300 es
    precision mediump float; in vec2 from; uniform sampler2D picture; out vec4 pixel;
    void main() { pixel = vec4(texture(picture, from).rgb * 0.8, 0.8); }`],
};

class Scene {
  constructor(canvas, motion) {
    this.canvas = canvas; this.motion = motion;
    const gl = this.gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
    if (!gl) throw new Error("this browser has no WebGL 2");
    this.programs = {};
    for (const [name, [vertex, fragment]] of Object.entries(SHADERS)) this.programs[name] = this.compile(vertex, fragment);
    this.buffers = { lines: gl.createBuffer(), order: gl.createBuffer(), dots: gl.createBuffer(), frame: gl.createBuffer(), image: gl.createBuffer() };
    this.texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 1, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array([90, 100, 120, 255]));
    for (const [key, value] of [[gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]])
      gl.texParameteri(gl.TEXTURE_2D, key, value);
    this.home();
  }

  compile(vertex, fragment) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source); gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    return program;
  }

  // Beside the camera, a little above, looking where it looks.
  home() {
    this.target = [...this.motion.centre];
    this.yaw = 0.6; this.pitch = 0.3;
    this.distance = 2.5 * this.motion.radius;
  }

  eye() {
    const c = Math.cos(this.pitch), d = this.distance;
    // y points down: the eye rises as y falls, and looks along +z as the camera does.
    return [this.target[0] - d * c * Math.sin(this.yaw), this.target[1] - d * Math.sin(this.pitch), this.target[2] - d * c * Math.cos(this.yaw)];
  }

  basis() {
    const e = this.eye(), f = unit(sub(this.target, e)), r = unit(cross(f, [0, -1, 0])), u = cross(r, f);
    return { e, f, r, u };
  }

  view() {
    const { e, f, r, u } = this.basis(), aspect = this.canvas.width / this.canvas.height, t = 1 / Math.tan(0.4);
    const near = this.distance / 100, far = this.distance * 200;
    const look = [r[0], u[0], -f[0], 0, r[1], u[1], -f[1], 0, r[2], u[2], -f[2], 0, -dot(r, e), -dot(u, e), dot(f, e), 1];
    const lens = [t / aspect, 0, 0, 0, 0, t, 0, 0, 0, 0, (far + near) / (near - far), -1, 0, 0, 2 * far * near / (near - far), 0];
    const out = new Float32Array(16);
    for (let i = 0; i < 4; i++) for (let j = 0; j < 4; j++) for (let k = 0; k < 4; k++) out[4 * i + j] += lens[4 * k + j] * look[4 * i + k];
    return out;
  }

  turn(dx, dy) { this.yaw -= dx * 0.006; this.pitch = Math.max(-1.5, Math.min(1.5, this.pitch + dy * 0.006)); }

  shift(dx, dy) {
    const { r, u } = this.basis(), step = this.distance * 0.0011;
    for (let a = 0; a < 3; a++) this.target[a] += step * (-dx * r[a] + dy * u[a]);
  }

  zoom(amount) { this.distance = Math.min(1e3 * this.motion.radius, Math.max(0.02 * this.motion.radius, this.distance * Math.exp(amount))); }

  // Paths of these hypotheses (-1: the mean); colours by colourOf(k, n, s) → [r, g, b].
  setPaths(chosen, colourOf) {
    const { N, S } = this.motion, gl = this.gl, step = 2, count = Math.floor((S - 1) / step) + 1;
    const vertices = new ArrayBuffer(chosen.length * N * count * 24), f = new Float32Array(vertices), c = new Uint8Array(vertices);
    const order = new Uint32Array(chosen.length * N * (count - 1) * 2), x = [0, 0, 0];
    let v = 0, o = 0;
    for (const k of chosen) for (let n = 0; n < N; n++) for (let i = 0; i < count; i++) {
      const s = i * step;
      this.motion.place(k, n, s, x);
      f.set(x, v * 6); f[v * 6 + 4] = s; f[v * 6 + 5] = n;
      const rgb = colourOf(k, n, s);
      for (let a = 0; a < 3; a++) c[v * 24 + 12 + a] = 255 * rgb[a];
      c[v * 24 + 15] = 255;
      if (i > 0) { order[o++] = v - 1; order[o++] = v; }
      v++;
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.lines); gl.bufferData(gl.ARRAY_BUFFER, vertices, gl.STATIC_DRAW);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.order); gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.STATIC_DRAW);
    this.numOrder = o; this.numPaths = chosen.length;
  }

  setImage(image) {
    const gl = this.gl;
    this.hasImage = true;
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, image);
  }

  draw({ now, dots, trails, frustum, picked, ground, ink }) {
    const gl = this.gl, ratio = window.devicePixelRatio || 1;
    const w = Math.round(this.canvas.clientWidth * ratio), h = Math.round(this.canvas.clientHeight * ratio);
    if (this.canvas.width !== w || this.canvas.height !== h) { this.canvas.width = w; this.canvas.height = h; }
    gl.viewport(0, 0, w, h);
    gl.clearColor(...ground, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); gl.disable(gl.DEPTH_TEST);
    const view = this.view();
    if (frustum) this.drawFrustum(view, frustum, ink);
    if (trails && this.numOrder) {
      const strength = Math.max(0.2, Math.min(0.9, 20 / Math.sqrt(this.numPaths * this.motion.N)));
      this.use("line", this.buffers.lines, 24, { place: [3, gl.FLOAT, 0], colour: [4, gl.UNSIGNED_BYTE, 12], at: [1, gl.FLOAT, 16], point: [1, gl.FLOAT, 20] }, view);
      this.uniforms("line", { now, reach: 6 * this.motion.perFrame, strength, picked });
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, this.buffers.order);
      gl.drawElements(gl.LINES, this.numOrder, gl.UNSIGNED_INT, 0);
    }
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.dots); gl.bufferData(gl.ARRAY_BUFFER, dots, gl.DYNAMIC_DRAW);
    this.use("dot", this.buffers.dots, 32, { place: [3, gl.FLOAT, 0], colour: [4, gl.FLOAT, 12], size: [1, gl.FLOAT, 28] }, view);
    this.uniforms("dot", { scale: ratio });
    gl.drawArrays(gl.POINTS, 0, dots.length / 8);
  }

  drawFrustum(view, corners, ink) {
    const gl = this.gl, [tip, a, b, c, d] = corners;
    if (this.hasImage) this.drawImage(view, [a, b, c, d]);
    const edges = [[tip, a], [tip, b], [tip, c], [tip, d], [a, b], [b, c], [c, d], [d, a]].flat();
    const f = new Float32Array(edges.length * 6), bytes = new Uint8Array(f.buffer);
    edges.forEach((x, i) => { f.set(x, i * 6); for (let k = 0; k < 3; k++) bytes[i * 24 + 12 + k] = 255 * ink[k]; bytes[i * 24 + 15] = 255; });
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.frame); gl.bufferData(gl.ARRAY_BUFFER, f, gl.DYNAMIC_DRAW);
    this.use("line", this.buffers.frame, 24, { place: [3, gl.FLOAT, 0], colour: [4, gl.UNSIGNED_BYTE, 12], at: [1, gl.FLOAT, 16], point: [1, gl.FLOAT, 20] }, view);
    this.uniforms("line", { now: 0, reach: 1, strength: 0.6, picked: -1 });
    gl.drawArrays(gl.LINES, 0, edges.length);
  }

  drawImage(view, [a, b, c, d]) {
    const gl = this.gl;
    const quad = new Float32Array([...a, 0, 0, ...b, 1, 0, ...c, 1, 1, ...a, 0, 0, ...c, 1, 1, ...d, 0, 1]);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.buffers.image); gl.bufferData(gl.ARRAY_BUFFER, quad, gl.DYNAMIC_DRAW);
    this.use("image", this.buffers.image, 20, { place: [3, gl.FLOAT, 0], uv: [2, gl.FLOAT, 12] }, view);
    gl.bindTexture(gl.TEXTURE_2D, this.texture);
    gl.drawArrays(gl.TRIANGLES, 0, 6);
  }

  use(name, buffer, stride, attributes, view) {
    const gl = this.gl, program = this.programs[name];
    gl.useProgram(program); gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    for (let i = 0; i < 4; i++) gl.disableVertexAttribArray(i);
    for (const [key, [size, type, offset]] of Object.entries(attributes)) {
      const at = gl.getAttribLocation(program, key);
      if (at < 0) continue;
      gl.enableVertexAttribArray(at);
      gl.vertexAttribPointer(at, size, type, type === gl.UNSIGNED_BYTE, stride, offset);
    }
    gl.uniformMatrix4fv(gl.getUniformLocation(program, "view"), false, view);
  }

  uniforms(name, values) {
    for (const [key, value] of Object.entries(values)) this.gl.uniform1f(this.gl.getUniformLocation(this.programs[name], key), value);
  }

  // Pixels of a place of space on the canvas, or null behind the eye.
  onScreen(x, view) {
    const p = [0, 1, 3].map((r) => view[r] * x[0] + view[4 + r] * x[1] + view[8 + r] * x[2] + view[12 + r]);
    if (p[2] <= 0) return null;
    return [(p[0] / p[2] + 1) / 2 * this.canvas.clientWidth, (1 - p[1] / p[2]) / 2 * this.canvas.clientHeight];
  }
}

const sub = (a, b) => a.map((x, i) => x - b[i]);
const dot = (a, b) => a.reduce((s, x, i) => s + x * b[i], 0);
const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
const unit = (a) => { const l = Math.hypot(...a) || 1; return a.map((x) => x / l); };
