// The chat page: a client of the same public API as everybody else. Model output only ever becomes textContent.
"use strict";

const KEY = "ratchet-key";
const SUGGESTIONS = ["How do I reset my password?", "When will my order arrive?", "Can I get a refund?"];
const REASONS = ["wrong", "too long", "too short", "not what I asked", "bad tone"];
const ICONS = {
  up: "M7 11v9H4v-9zM7 11l4-7c1.6 0 2.5 1.1 2.2 2.6L12.6 10H18a2 2 0 0 1 2 2.4l-1.2 6A2 2 0 0 1 16.900 20H7",
  down: "M17 13V4h3v9zM17 13l-4 7c-1.600 0-2.500-1.100-2.200-2.600l.6-3.400H6a2 2 0 0 1-2-2.400l1.200-6A2 2 0 0 1 7.100 4H17",
  again: "M20 11a8 8 0 1 0-2.300 6.300M20 5v6h-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13.500 6.500l4 4",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  earlier: "m14 6-6 6 6 6",
  later: "m10 6 6 6-6 6",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
};

const $ = (id) => document.getElementById(id);
let turns = [];          // {question, versions: [{text, id, edit}], shown, view, offer: [left, right]}
let running = null;      // AbortController of the reply that is being streamed

function icon(button, name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(svg.namespaceURI, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  button.replaceChildren(svg);
}

// ---- key and conversation: kept in this browser, never in a URL that leaves it

const store = {
  get: (name) => { try { return localStorage.getItem(name); } catch { return null; } },
  set: (name, value) => { try { localStorage.setItem(name, value); } catch { /* private mode: this page only */ } },
};
let key = "", conversation = "";

function takeKeyFromFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given) {
    store.set(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  key = given || store.get(KEY) || "";
}

function newConversation() {
  conversation = `page-${Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, "0")).join("")}`;
}

function askForKey() {
  $("key-input").value = key;
  $("key-dialog").showModal();
}

// ---- the API

class Trouble extends Error {}

async function call(path, body, signal) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST", signal, body: JSON.stringify(body),
      headers: { "content-type": "application/json", authorization: `Bearer ${key}` },
    });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new Trouble("The gateway cannot be reached. Is it running?");
  }
  if (response.ok) return response;
  const said = await response.json().catch(() => null);
  if (response.status === 401) askForKey();
  throw new Trouble(said?.error?.message || `The gateway answered ${response.status}.`);
}

async function* events(response) {
  const decoder = new TextDecoder();
  let pending = "";
  for (const reader = response.body.getReader(); ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (pending + decoder.decode(value, { stream: true })).split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function signal(turn, kind, more = {}) {
  const version = turn.versions[turn.shown];
  if (!version.id) return false;
  try {
    await call("v1/feedback", { response_id: version.id, kind, ...more });
    clearTrouble();
    return true;
  } catch (e) {
    trouble(e);
    return false;
  }
}

// ---- one turn

function historyBefore(turn) {
  const messages = [];
  for (const t of turns.slice(0, turns.indexOf(turn))) {
    const version = t.versions[t.shown];
    messages.push({ role: "user", content: t.question });
    if (version?.text) messages.push({ role: "assistant", content: version.edit ?? version.text });
  }
  return [...messages, { role: "user", content: turn.question }];
}

function addTurn(question) {
  const view = $("turn").content.firstElementChild.cloneNode(true);
  const turn = { question, versions: [], shown: -1, view };
  const part = (name) => view.querySelector(`.${name}`);
  part("user").textContent = question;
  for (const name of ["up", "down", "again", "edit", "copy", "earlier", "later"]) icon(part(name), name);
  part("up").onclick = () => thumb(turn, 1);
  part("down").onclick = () => thumb(turn, 0);
  part("again").onclick = () => reply(turn);
  part("edit").onclick = () => openEditor(turn);
  part("copy").onclick = () => copy(turn);
  part("earlier").onclick = () => show(turn, turn.shown - 1);
  part("later").onclick = () => show(turn, turn.shown + 1);
  part("a-better").onclick = () => prefer(turn, 1);
  part("b-better").onclick = () => prefer(turn, 0);
  part("same").onclick = () => prefer(turn, 0.5);
  part("cancel").onclick = () => closeEditor(turn);
  part("editor").onsubmit = (e) => { e.preventDefault(); saveEdit(turn); };
  turns.push(turn);
  $("welcome").hidden = true;
  $("log").append(view);
  return turn;
}

function show(turn, n) {
  turn.shown = n;
  const version = turn.versions[n], view = turn.view;
  const busy = version.state === "streaming";
  const box = view.querySelector(".reply");
  box.querySelector(".text").textContent = version.edit ?? version.text;
  box.setAttribute("aria-busy", String(busy));
  box.classList.toggle("edited", version.edit !== undefined);
  box.hidden = Boolean(turn.offer);
  view.querySelector(".pair").hidden = !turn.offer;
  view.querySelector(".actions").hidden = busy || Boolean(turn.offer);
  for (const name of ["up", "down", "edit"]) view.querySelector(`.icon.${name}`).hidden = !version.id;
  view.querySelector(".icon.copy").hidden = !version.text;
  view.querySelector(".up").setAttribute("aria-pressed", String(version.thumb === 1));
  view.querySelector(".down").setAttribute("aria-pressed", String(version.thumb === 0));
  view.querySelector(".versions").hidden = turn.versions.length < 2;
  view.querySelector(".which").textContent = `${n + 1} / ${turn.versions.length}`;
  view.querySelector(".earlier").disabled = n === 0;
  view.querySelector(".later").disabled = n === turn.versions.length - 1;
  view.querySelector(".note").textContent = version.note || "";
  showReasons(turn, version);
}

function showReasons(turn, version) {
  const box = turn.view.querySelector(".reasons");
  box.hidden = version.thumb !== 0;
  box.replaceChildren(...(box.hidden ? [] : REASONS.map((reason) => {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.className = "chip";
    chip.textContent = reason;
    chip.setAttribute("aria-pressed", String(version.reasons.has(reason)));
    chip.onclick = () => giveReason(turn, version, reason);
    return chip;
  })));
}

async function reply(turn) {
  if (running) return;
  const earlier = turn.versions[turn.shown];
  const version = { text: "", state: "streaming", reasons: new Set() };
  turn.versions.push(version);
  const n = turn.versions.length - 1;
  running = new AbortController();
  busy(true);
  show(turn, n);
  follow(true);
  try {
    const body = { model: "ratchet", messages: historyBefore(turn), stream: true, metadata: { conversation_id: conversation }, ratchet: { compare: true } };
    const response = await call("v1/chat/completions", body, running.signal);
    for await (const event of events(response)) {
      if (event.error) throw new Trouble(event.error.message);
      version.text += event.choices?.[0]?.delta?.content ?? "";
      if (event.ratchet) done(version, event.ratchet);
      if (event.ratchet?.alternative) offer(turn, version, event.ratchet.alternative);
      if (turn.shown === n) turn.view.querySelector(".text").textContent = version.text;
      follow(false);
    }
    clearTrouble();
  } catch (e) {
    version.note = e.name === "AbortError" ? "Stopped." : "Broken off.";
    if (e.name !== "AbortError") trouble(e);
  } finally {
    version.state = "over";
    running = null;
    busy(false);
    if (turn.shown === n) show(turn, n);
    if (turn.offer && !$("question").value) turn.view.querySelector(".pair").focus();
    follow(false);
  }
  if (earlier?.id && version.id) await signal(turn, "regeneration", { response_id: earlier.id, other_response_id: version.id });
}

function done(version, extras) {
  version.id = extras.response_id;
  $("adapter").textContent = extras.adapter;
  $("adapter").title = `answered by ${extras.adapter} (${extras.arm})`;
  $("adapter").hidden = false;
}

// ---- two replies side by side, for a few turns: the gateway says which stands where

function offer(turn, version, alternative) {
  const other = { text: alternative.content, id: alternative.response_id, state: "over", reasons: new Set() };
  turn.versions.push(other);
  turn.offer = alternative.side === "left" ? [other, version] : [version, other];
  turn.offer.forEach((one, n) => { turn.view.querySelectorAll(".said")[n].textContent = one.text; });
}

function openOffer() { return turns.find((turn) => turn.offer && !running); }

async function prefer(turn, leftBetter) {
  const [left, right] = turn.offer;
  turn.offer = undefined;
  if (leftBetter !== 0.5) turn.shown = turn.versions.indexOf(leftBetter ? left : right);
  const version = turn.versions[turn.shown];
  show(turn, turn.shown);
  $("question").focus();
  const taken = await signal(turn, "comparison", { response_id: left.id, other_response_id: right.id, value: leftBetter });
  version.note = taken ? "Thanks!" : "";
  if (turn.versions[turn.shown] === version) show(turn, turn.shown);
}

function leaveOffer() {
  const turn = openOffer();
  if (!turn) return;
  turn.offer = undefined;
  show(turn, turn.shown);
}

async function thumb(turn, value) {
  const version = turn.versions[turn.shown];
  const before = version.thumb;
  if (before === value) return;
  version.thumb = value;
  version.note = "";
  show(turn, turn.shown);
  const taken = await signal(turn, "thumb", { value });
  version.thumb = taken ? value : before;
  version.note = taken ? (value ? "Thanks!" : "Thanks. What was wrong?") : "";
  show(turn, turn.shown);
  follow(false);
}

async function giveReason(turn, version, reason) {
  version.reasons.has(reason) ? version.reasons.delete(reason) : version.reasons.add(reason);
  show(turn, turn.shown);
  await signal(turn, "thumb", { value: 0, reasons: [...version.reasons] });
}

function openEditor(turn) {
  const version = turn.versions[turn.shown], editor = turn.view.querySelector(".editor");
  const text = editor.querySelector("textarea");
  text.value = version.edit ?? version.text;
  editor.hidden = false;
  turn.view.querySelector(".reply").hidden = true;
  turn.view.querySelector(".actions").hidden = true;
  text.focus();
}

function closeEditor(turn) {
  turn.view.querySelector(".editor").hidden = true;
  turn.view.querySelector(".reply").hidden = false;
  show(turn, turn.shown);
}

async function saveEdit(turn) {
  const version = turn.versions[turn.shown];
  const text = turn.view.querySelector(".editor textarea").value.trim();
  if (text && text !== version.text && await signal(turn, "edit", { text })) {
    version.edit = text;
    version.note = "Your edit is saved.";
  }
  closeEditor(turn);
}

async function copy(turn) {
  const version = turn.versions[turn.shown];
  try {
    await navigator.clipboard.writeText(version.edit ?? version.text);
    version.note = "Copied.";
  } catch {
    version.note = "This browser did not allow copying.";
  }
  show(turn, turn.shown);
  if (version.note === "Copied.") await signal(turn, "copy");
}

// ---- the page

function trouble(e) {
  $("trouble").textContent = e instanceof Trouble ? e.message : `Something went wrong in this page: ${e.message}`;
  $("trouble").hidden = false;
}

function clearTrouble() { $("trouble").hidden = true; }

function busy(on) {
  icon($("send"), on ? "stop" : "send");
  $("send").setAttribute("aria-label", on ? "Stop" : "Send");
  for (const button of document.querySelectorAll(".again")) button.disabled = on;
}

function follow(always) {
  const log = $("log");
  if (always || log.scrollHeight - log.scrollTop - log.clientHeight < 160) log.scrollTop = log.scrollHeight;
}

function fit() {
  const question = $("question");
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

function ask(text) {
  const question = text.trim();
  if (!question || running) return;
  if (!key) { askForKey(); return; }
  $("question").value = "";
  fit();
  leaveOffer();
  reply(addTurn(question));
}

function clear() {
  running?.abort();
  for (const turn of turns) turn.view.remove();
  turns = [];
  newConversation();
  clearTrouble();
  $("welcome").hidden = false;
  $("question").focus();
}

$("ask").onsubmit = (e) => { e.preventDefault(); running ? running.abort() : ask($("question").value); };
$("question").oninput = fit;
$("question").onkeydown = (e) => {
  if (e.key !== "Enter" || e.shiftKey || e.isComposing) return;
  e.preventDefault();
  ask($("question").value);
};
document.onkeydown = (e) => {
  if ($("key-dialog").open) return;
  if (e.key === "Escape" && running) running.abort();
  const turn = openOffer();
  const leftBetter = { a: 1, b: 0, s: 0.5 }[e.key.toLowerCase()];
  if (!turn || leftBetter === undefined || e.ctrlKey || e.metaKey || e.altKey || e.target.matches("textarea, input")) return;
  e.preventDefault();
  prefer(turn, leftBetter);
};
$("new").onclick = clear;
$("key").onclick = askForKey;
$("key-cancel").onclick = () => $("key-dialog").close();
$("key-form").onsubmit = () => { key = $("key-input").value.trim(); store.set(KEY, key); clearTrouble(); };
window.onhashchange = takeKeyFromFragment;
for (const text of SUGGESTIONS) {
  const chip = document.createElement("button");
  chip.type = "button";
  chip.className = "chip";
  chip.textContent = text;
  chip.onclick = () => ask(text);
  $("suggestions").append(chip);
}
icon($("send"), "send");
takeKeyFromFragment();
newConversation();
if (!key) askForKey();
