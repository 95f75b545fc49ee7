"""The page in which an exported policy plays CartPole, drawn on a canvas: gymnasium's equations, Euler steps of 0.02 s."""

from __future__ import annotations

CARTPOLE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>CartPole, played by an exported policy</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; margin: 0; background: #f4f4f1; color: #222; display: grid; place-items: center; min-height: 100vh }
  main { width: min(720px, 94vw) }
  h1 { font-size: 1.25rem; margin: 0 0 .5rem }
  canvas { box-sizing: border-box; width: 100%; background: #fff; border: 1px solid #ccc; border-radius: 6px; display: block }
  footer { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; justify-content: space-between; margin: .75rem 0 0 }
  dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0 }
  dt { font-size: .8rem; color: #666 }
  dd { margin: 0; font-variant-numeric: tabular-nums; font-size: 1.25rem }
  button { font: inherit; padding: .2rem .9rem }
</style>
</head>
<body>
<main>
  <h1>CartPole, played by an exported policy</h1>
  <canvas id="view" width="1440" height="640" aria-label="a cart that balances a pole"></canvas>
  <footer>
    <dl>
      <div><dt>steps of this episode</dt><dd id="steps">0</dd></div>
      <div><dt>last return</dt><dd id="last">–</dd></div>
      <div><dt>mean return</dt><dd id="mean">–</dd></div>
      <div><dt>µs per action</dt><dd id="time">–</dd></div>
    </dl>
    <button id="push">Push the cart</button>
  </footer>
</main>
<script type="module">
/*POLICY*/

const GRAVITY = 9.8, CART = 1.0, POLE = 0.1, HALF = 0.5, FORCE = 10, STEP = 0.02, EDGE = 2.4, TILT = 12 * 2 * Math.PI / 360, LIMIT = 500;
const policy = new Policy();
const returns = [];
let state, steps, push = 0;

function begin() {
  state = Array.from({ length: 4 }, () => Math.random() * 0.1 - 0.05);
  steps = 0;
  policy.reset();
}

// One step of gymnasium's CartPole; true where the episode ends.
function advance(action) {
  let [x, speed, angle, turn] = state;
  const force = (action === 1 ? FORCE : -FORCE) + push;
  push = 0;
  const cos = Math.cos(angle), sin = Math.sin(angle), total = CART + POLE;
  const pull = (force + POLE * HALF * turn * turn * sin) / total;
  const spin = (GRAVITY * sin - cos * pull) / (HALF * (4 / 3 - POLE * cos * cos / total));
  const gain = pull - POLE * HALF * spin * cos / total;
  state = [x + STEP * speed, speed + STEP * gain, angle + STEP * turn, turn + STEP * spin];
  steps++;
  return Math.abs(state[0]) > EDGE || Math.abs(state[2]) > TILT || steps >= LIMIT;
}

function episodeEnded() {
  returns.push(steps);
  show("last", steps);
  show("mean", (returns.reduce((a, b) => a + b) / returns.length).toFixed(1) + " of " + returns.length);
  begin();
}

const canvas = document.getElementById("view"), pen = canvas.getContext("2d");
const show = (id, value) => { document.getElementById(id).textContent = value; };

function draw() {
  const { width, height } = canvas, scale = width / (2 * EDGE + 0.6), ground = height * 0.78;
  pen.clearRect(0, 0, width, height);
  pen.strokeStyle = "#999";
  pen.lineWidth = 3;
  pen.beginPath();
  pen.moveTo(0, ground);
  pen.lineTo(width, ground);
  for (const edge of [-EDGE, EDGE]) { pen.moveTo(width / 2 + edge * scale, ground - 20); pen.lineTo(width / 2 + edge * scale, ground + 20); }
  pen.stroke();
  const x = width / 2 + state[0] * scale;
  pen.fillStyle = "#2f4b6e";
  pen.fillRect(x - 70, ground - 50, 140, 50);
  pen.save();
  pen.translate(x, ground - 50);
  pen.rotate(state[2]);
  pen.fillStyle = "#c98a3d";
  pen.fillRect(-9, -2 * HALF * scale, 18, 2 * HALF * scale);
  pen.restore();
  pen.fillStyle = "#222";
  pen.beginPath();
  pen.arc(x, ground - 50, 9, 0, 7);
  pen.fill();
  show("steps", steps);
}

function play(count) {
  const began = performance.now();
  for (let i = 0; i < count; i++) if (advance(policy.act(state))) episodeEnded();
  return (performance.now() - began) / count * 1000;
}

document.getElementById("push").onclick = () => { push = (Math.random() < 0.5 ? -1 : 1) * 80; };
begin();
const ahead = Number(new URLSearchParams(location.search).get("steps") || 0); // ?steps=5000 plays so many before the first picture
if (ahead) show("time", play(ahead).toFixed(2));
draw();
let due = performance.now(), clock = 0, spent = 0;
function frame(now) {
  for (; due < now; due += 1000 * STEP) { spent += play(1); clock++; }
  if (clock >= 100) { show("time", (spent / clock).toFixed(2)); clock = spent = 0; }
  draw();
  requestAnimationFrame(frame);
}
requestAnimationFrame(frame);
</script>
</body>
</html>
"""
