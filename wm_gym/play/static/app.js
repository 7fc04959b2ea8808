// The page: what the server tells is shown, what the player does is told to the server.

import { connect, FULL } from "./socket.js";
import { Pads } from "./keys.js";
import { drawImage, MazeMap } from "./draw.js";

const RETRY_SECONDS = 2;
const NOTICE_SECONDS = 5;
const FPS_WINDOW_MS = 2000;
const LATENCIES = 9; // the median of so many is shown

const $ = (id) => document.getElementById(id);
const app = $("app");
const map = new MazeMap($("map-canvas"));

let server = { send() {} };
let welcome = null;
let pads = null;
let status = { paused: false, agent: false, recording: false, busy: true, moments: [] };
let last = null; // the last frame: {header, views}
let arrivals = [];
let latencies = [];
let pausedByHiding = false;
let noticeTimer = 0;

// ---- what the server says ----------------------------------------------------------------------------------------

const on = {
  text(message) {
    handlers[message.type](message);
  },

  frame({ header, views }) {
    last = { header, views: { ...last?.views, ...views } };
    drawViews(views);
    server.send("ack", { frame: header.frame });
    noteTimes(header);
    showFrame(header);
  },

  close(event) {
    setLive("closed", event.code === FULL ? "full" : "not connected");
    arrivals = [];
    if (event.code === FULL) {
      showVeil(`${event.reason} This page takes the next place that is free.`);
      setTimeout(open, 1000 * RETRY_SECONDS);
    } else {
      const reason = event.reason || "The server has gone.";
      showVeil(reason, { button: "Connect again", action: open });
    }
  },
};

const handlers = {
  welcome(message) {
    welcome = message;
    app.toggleAttribute("data-alone", !message.real);
    $("real-screen").hidden = $("swap").hidden = !message.real;
    $("agent").hidden = !message.policy;
    $("agent").title = message.policy ? `Driven by ${message.policy}` : "";
    $("record").hidden = !message.can_record;
    $("main-name").textContent = message.main.label === "dream" ? "Dream" : "Environment";
    $("main-id").textContent = message.main.id;
    $("passes").textContent = describePasses(message.main.passes);
    $("passes").title = message.main.passes?.reason ?? "";
    $("real-id").textContent = message.real?.id ?? "";
    pads = new Pads($("pads"), message.controls, sendAction);
    [$("speed").min, $("speed").max] = message.fps_range;
    setSpeed(message.fps, false);
    $("keys-help").textContent = describeKeys(message.controls);
    forgetAll();
    setLive("live", "live");
    showVeil(message.real ? "Building a maze …" : "Reading the context …");
  },

  status(message) {
    status = message;
    const pause = $("pause");
    pause.setAttribute("aria-pressed", message.paused);
    pause.querySelector(".label").textContent = message.paused ? "Resume" : "Pause";
    $("agent").setAttribute("aria-pressed", message.agent);
    $("record").setAttribute("aria-pressed", message.recording);
    $("pads").classList.toggle("agent", message.agent);
    $("remember").disabled = message.busy || message.moments.length >= (welcome?.max_moments ?? 0);
    for (const item of [...$("moment-list").children]) {
      if (!message.moments.includes(Number(item.dataset.id))) item.remove();
    }
    $("moments").hidden = message.moments.length === 0;
    showState();
  },

  map(message) {
    $("map").hidden = !message.walls;
    map.set(message.walls ? message : null);
  },

  moment({ id, steps }) {
    $("moment-list").append(makeMoment(id, steps));
    $("moments").hidden = false;
  },

  notice({ text }) {
    notify(text);
  },
};

// ---- showing -----------------------------------------------------------------------------------------------------

function drawViews(views) {
  for (const [label, image] of Object.entries(views)) {
    drawImage($(label === welcome.main.label ? "main-canvas" : "real-canvas"), image);
  }
}

function showFrame(header) {
  const main = header.worlds[welcome.main.label];
  const real = welcome.real && header.worlds[welcome.real.label];
  app.dataset.phase = header.phase;
  app.dataset.frame = header.frame;
  app.dataset.steps = main?.steps ?? "";
  $("steps").textContent = main?.steps ?? 0;
  $("total").textContent = short(main?.total ?? 0);
  if (real) $("real-total").textContent = short(header.phase === "play" ? real.total : 0);
  $("psnr").textContent = header.psnr == null ? "–" : header.psnr.toFixed(1);
  $("seed-now").textContent = header.seed;
  if (header.by_agent) pads.light(header.action);
  if (header.pose) {
    map.walk(header.pose, header.phase === "context");
    map.draw(header.pose, header.target);
  }
  showState();
}

/** The veil over the main screen says why nothing moves there. */
function showState() {
  if (!last || !welcome) return;
  const { phase, progress, ended } = last.header;
  if (phase === "context") {
    const [done, all] = progress;
    const text = done < all ? `Reading ${done} of ${all} real frames` : "Beginning to dream …";
    showVeil(text, { progress: done / all });
  } else if (phase === "return") {
    showVeil("Going back …");
  } else if (status.busy && !ended) {
    showVeil("One moment …");
  } else if (ended) {
    showVeil(describeEnd(ended), { button: "New episode", action: reset });
  } else {
    hideVeil();
  }
}

function describeEnd(ended) {
  const [label, reason] = ended.split(": ");
  if (reason === "not started") return "No episode is running.";
  const ends = { terminated: "has come to its end", "time limit": "has reached its time limit" };
  return `The ${label} ${ends[reason] ?? reason}.`;
}

function showVeil(text, { button = "", action = null, progress = null } = {}) {
  $("veil").toggleAttribute("data-on", true);
  $("veil-text").textContent = text;
  $("veil-button").hidden = !button;
  $("veil-button").textContent = button;
  $("veil-button").onclick = action;
  $("veil-progress").hidden = progress === null;
  $("veil-progress").value = 100 * (progress ?? 0);
}

function hideVeil() {
  $("veil").toggleAttribute("data-on", false);
  $("veil-button").hidden = true;
}

function setLive(state, text) {
  $("live").dataset.state = state;
  $("live").querySelector("span").textContent = text;
}

function notify(text) {
  $("notice").textContent = text;
  $("notice").toggleAttribute("data-on", true);
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => $("notice").toggleAttribute("data-on", false), 1000 * NOTICE_SECONDS);
}

function noteTimes(header) {
  const now = performance.now();
  arrivals = [...arrivals.filter((time) => now - time < FPS_WINDOW_MS), now];
  if (arrivals.length > 2) {
    const fps = (1000 * (arrivals.length - 1)) / (now - arrivals[0]);
    $("fps").textContent = fps.toFixed(fps < 9.95 ? 1 : 0);
  }
  if (header.stamp !== null && header.phase === "play") {
    latencies = [...latencies, now - header.stamp].slice(-LATENCIES);
    $("latency").textContent = Math.round([...latencies].sort((a, b) => a - b)[latencies.length >> 1]);
  }
}

function short(value) {
  return String(Math.round(100 * value) / 100);
}

function describePasses(passes) {
  return passes ? `${passes.number} pass${passes.number === 1 ? "" : "es"} per frame` : "";
}

function describeKeys(controls) {
  const steer = controls.layout === "arrows" ? "Arrow keys or W A D move" : "The number keys choose an action";
  return `${controls.buttons.length ? `${steer}. ` : ""}Space pauses, N makes a single step, M remembers this moment, ` +
    "B goes back to the last one, R starts a new episode, + and − change the speed.";
}

// ---- moments -----------------------------------------------------------------------------------------------------

function makeMoment(id, steps) {
  const item = document.createElement("li");
  item.className = "new";
  item.dataset.id = id;
  const go = document.createElement("button");
  go.type = "button";
  go.className = "go";
  go.setAttribute("aria-label", `Go back to moment ${id}, step ${steps}`);
  const picture = document.createElement("canvas");
  drawImage(picture, last.views[welcome.main.label]);
  go.append(picture, `step ${steps}`);
  go.onclick = () => server.send("go_back", { moment: id });
  const forget = document.createElement("button");
  forget.type = "button";
  forget.className = "forget";
  forget.textContent = "×";
  forget.setAttribute("aria-label", `Forget moment ${id}`);
  forget.onclick = () => server.send("forget", { moment: id });
  item.append(go, forget);
  return item;
}

function forgetAll() {
  $("moment-list").replaceChildren();
  $("moments").hidden = true;
}

// ---- what the player does ----------------------------------------------------------------------------------------

function sendAction(action) {
  server.send("act", { action, stamp: performance.now() });
}

function setPaused(paused) {
  server.send("pause", { on: paused });
}

function reset() {
  const field = $("seed");
  if (!field.reportValidity()) return;
  server.send("reset", { seed: field.value === "" ? null : Number(field.value) });
}

function setSpeed(fps, tell = true) {
  const slider = $("speed");
  slider.value = fps;
  $("speed-value").textContent = `${slider.value} frames/s`;
  if (tell) server.send("speed", { fps: Number(slider.value) });
}

function swap() {
  if (welcome?.real) app.toggleAttribute("data-swapped");
}

function goBack() {
  const id = status.moments.at(-1);
  if (id !== undefined) server.send("go_back", { moment: id });
}

const click = (id) => () => !$(id).hidden && !$(id).disabled && $(id).click();
const shortcuts = {
  Space: () => setPaused(!status.paused),
  KeyN: () => server.send("step"),
  KeyM: click("remember"),
  KeyB: goBack,
  KeyR: reset,
  KeyX: swap,
  KeyG: click("agent"),
  KeyC: click("record"),
  Minus: () => setSpeed(Number($("speed").value) - 1),
  Equal: () => setSpeed(Number($("speed").value) + 1),
  NumpadSubtract: () => setSpeed(Number($("speed").value) - 1),
  NumpadAdd: () => setSpeed(Number($("speed").value) + 1),
  BracketRight: () => setSpeed(Number($("speed").value) + 1),
};

$("pause").onclick = () => setPaused(!status.paused);
$("step").onclick = () => server.send("step");
$("remember").onclick = () => server.send("remember");
$("swap").onclick = swap;
$("agent").onclick = () => server.send("agent", { on: !status.agent });
$("record").onclick = () => server.send("record", { on: !status.recording });
$("speed").oninput = () => setSpeed($("speed").value);
$("reset-form").onsubmit = (event) => {
  event.preventDefault();
  reset();
  $("main-canvas").focus(); // so that the next keys steer again
};

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { code, target } = event;
  const types = target.tagName === "INPUT";
  const presses = target.tagName === "BUTTON" && code === "Space";
  if (types || presses) return;
  if (pads?.owns(code)) {
    event.preventDefault();
    pads.keyDown(code);
  } else if (shortcuts[code] && !event.repeat) {
    event.preventDefault();
    shortcuts[code]();
  }
});
addEventListener("keyup", ({ code }) => pads?.owns(code) && pads.keyUp(code));
addEventListener("blur", () => pads?.releaseAll());
document.addEventListener("visibilitychange", () => {
  // Nobody watches a hidden page, so its dream waits.
  if (document.hidden && !status.paused) {
    pausedByHiding = true;
    setPaused(true);
  } else if (!document.hidden && pausedByHiding) {
    pausedByHiding = false;
    setPaused(false);
  }
});

function open() {
  setLive("connecting", "connecting");
  showVeil("Connecting …");
  last = null;
  server = connect(on);
}

open();
