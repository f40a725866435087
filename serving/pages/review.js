// The review page: two replies, one verdict. What people and models wrote only ever becomes textContent.
"use strict";

const KEY = "ratchet-key";
const LOOK_AGAIN_MS = 15_000;
const LEANS = [["left", "1"], ["tie", "="], ["right", "2"]];
const DIMENSION_KEYS = { h: "helpful", o: "honest", m: "harmless" };
const VERDICT_KEYS = { 1: "left", 2: "right", ArrowLeft: "left", ArrowRight: "right", "=": "tie", 0: "tie", b: "both_bad" };

const $ = (id) => document.getElementById(id);
let key = "";
let now = null;       // {question, dimensions, revision}: what is on screen
let before = null;    // the one answered before it
let busy = false;
let timer = 0;

const store = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode: this page only */ } },
};

function takeKeyFromFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    store.set(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  key = given || store.get(KEY) || "";
}

function askForKey() {
  $("key-input").value = key;
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

// ---- the API

class Trouble extends Error {}

async function call(body) {
  let response;
  try {
    response = await fetch("v1/review", {
      method: body ? "POST" : "GET", body: body && JSON.stringify(body),
      headers: { ...(body && { "content-type": "application/json" }), authorization: `Bearer ${key}` },
    });
  } catch {
    throw new Trouble("The gateway cannot be reached. Is it running?");
  }
  if (response.ok) return response.json();
  const said = await response.json().catch(() => null);
  if (response.status === 401 || response.status === 403) askForKey();
  throw new Trouble(said?.error?.message || `The gateway answered ${response.status}.`);
}

/** One request at a time; what goes wrong is said, and leaves the question where it is. */
async function alone(work) {
  if (busy) return;
  busy = true;
  try {
    await work();
    $("trouble").hidden = true;
  } catch (e) {
    if (!(e instanceof Trouble)) throw e;
    $("trouble").textContent = e.message;
    $("trouble").hidden = false;
  } finally {
    busy = false;
  }
}

// ---- questions and answers

async function next() {
  clearTimeout(timer);
  const question = await call();
  now = question.ticket ? { question, dimensions: {}, revision: 0 } : null;
  show(question.waiting || 0);
  if (!now) timer = setTimeout(() => alone(next), LOOK_AGAIN_MS);
}

function send(asked, verdict, more = {}) {
  return call({ ticket: asked.question.ticket, verdict, revision: asked.revision, ...more });
}

const answer = (verdict, reason) => alone(async () => {
  if (!now) return;
  await send(now, verdict, reason ? { reason } : { dimensions: now.dimensions });
  before = now;
  await next();
});

const undo = () => alone(async () => {
  if (!before) return;
  before.revision += 1;
  await send(before, null);
  before.revision += 1;
  clearTimeout(timer);
  now = before;
  before = null;
  show();
});

function lean(dimension, to) {
  if (!now) return;
  if (now.dimensions[dimension] === to) delete now.dimensions[dimension];
  else now.dimensions[dimension] = to;
  showLeans();
}

/** One key goes round: 1, same, 2, nothing. */
function turn(dimension) {
  const order = [...LEANS.map(([to]) => to), undefined];
  const to = order[(order.indexOf(now?.dimensions[dimension]) + 1) % order.length];
  if (now && to === undefined) delete now.dimensions[dimension];
  else if (now) now.dimensions[dimension] = to;
  showLeans();
}

// ---- what is on screen

function show(waiting) {
  $("nothing").hidden = Boolean(now);
  $("question").hidden = $("answers").hidden = !now;
  $("reasons").hidden = true;
  $("undo").disabled = !before;
  if (waiting !== undefined) $("count").textContent = waiting ? `${waiting} waiting` : "";
  if (!now) return;
  const { prompt, left, right, dimensions, reasons_to_pass: reasons } = now.question;
  $("prompt").replaceChildren(...prompt.map(message));
  $("left").textContent = left;
  $("right").textContent = right;
  $("dimensions").replaceChildren(...dimensions.map(dimensionRow));
  $("reasons").replaceChildren(...reasons.map((reason, n) => chip(reason, `${n + 1}`, () => answer("pass", reason))));
  showLeans();
  $("desk").scrollTop = 0;
}

function message({ role, content }) {
  const said = document.createElement("div");
  said.className = ["user", "assistant"].includes(role) ? role : "system";
  said.textContent = content;
  return said;
}

function chip(text, shortcut, act) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "chip";
  const hint = document.createElement("kbd");
  hint.textContent = shortcut;
  button.append(`${text} `, hint);
  button.onclick = act;
  return button;
}

function dimensionRow(dimension) {
  const row = document.createElement("div"), word = document.createElement("span"), choices = document.createElement("span");
  row.className = "dimension";
  row.dataset.dimension = dimension;
  word.className = "word";
  choices.className = "choices";
  const hint = document.createElement("kbd");
  hint.textContent = Object.keys(DIMENSION_KEYS).find((k) => DIMENSION_KEYS[k] === dimension)?.toUpperCase() || "";
  word.append(`More ${dimension} `, hint);
  for (const [to, sign] of LEANS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = sign;
    button.dataset.lean = to;
    button.setAttribute("aria-label", to === "tie" ? `Both equally ${dimension}` : `${sign} is more ${dimension}`);
    button.onclick = () => lean(dimension, to);
    choices.append(button, " ");
  }
  row.append(word, choices);
  return row;
}

function showLeans() {
  for (const row of $("dimensions").children) {
    for (const button of row.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(now?.dimensions[row.dataset.dimension] === button.dataset.lean));
    }
  }
}

function toggleReasons() {
  $("reasons").hidden = !$("reasons").hidden;
  if (!$("reasons").hidden) $("reasons").firstElementChild?.focus();
}

// ---- keys

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey || e.repeat || $("key-dialog").open) return;
  const pressed = e.key.length === 1 ? e.key.toLowerCase() : e.key;
  if (pressed === "u") return undo();
  if (!now) return;
  if (!$("reasons").hidden) {
    if (pressed === "Escape" || pressed === "s") toggleReasons();
    else $("reasons").children[Number(pressed) - 1]?.click();
  } else if (pressed === "s") toggleReasons();
  else if (DIMENSION_KEYS[pressed]) turn(DIMENSION_KEYS[pressed]);
  else if (VERDICT_KEYS[pressed]) answer(VERDICT_KEYS[pressed]);
  else return;
  e.preventDefault();
}

$("key").onclick = askForKey;
$("key-cancel").onclick = () => $("key-dialog").close();
$("key-form").onsubmit = () => {
  key = $("key-input").value.trim();
  store.set(KEY, key);
  alone(next);
};
$("undo").onclick = undo;
$("again").onclick = () => alone(next);
$("pass").onclick = toggleReasons;
for (const button of document.querySelectorAll("[data-verdict]")) button.onclick = () => answer(button.dataset.verdict);
document.addEventListener("keydown", onKey);

takeKeyFromFragment();
if (key) alone(next);
else askForKey();
