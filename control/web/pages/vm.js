// One machine: its screen and consoles side by side, how it booted, its messages, files, commands.

import { Addresses } from "./addresses.js";
import { ConsoleView } from "./console.js";
import { Controls } from "./controls.js";
import { filesPanel } from "./files.js";
import { Live } from "./live.js";
import { ScreenView } from "./screen.js";
import { snapshotsPanel } from "./snapshots.js";
import { act, ask, askForText, begin, el, formatBytes, formatSince, menu, tell, tellError, vmPath } from "./ui.js";

const name = decodeURIComponent(location.pathname.split("/").pop());
const me = await begin(`/vm/${name}`);
const canDo = me.role === "operator";
const main = document.getElementById("main");
const base = vmPath(name);
document.title = `${name} – unhinged`;

const pill = el("span", { class: "pill" });
const buttons = el("span", { class: "row tight" });
const line = el("div", { class: "line" });
const note = el("div", { class: "notice bad", role: "alert", hidden: true });
const controls = new Controls(buttons, { onDone: () => snapshots.look(), more: [["Share a link to look…", share], ["End all shared links", endShares]] });
main.append(el("div", { class: "head" }, el("h1", { text: name }), pill, el("span", { class: "grow" }), buttons, line), note);

// -- the screen ---------------------------------------------------------------------------------------------------

const screenPlace = el("div", { class: "view" });
const clipboard = el("button", { hidden: true, title: "what the guest has copied", text: "Copy from guest" });
let guestText = "";
clipboard.addEventListener("click", () => navigator.clipboard.writeText(guestText).then(() => tell("copied"), tellError));
const scale = el("button", { "aria-pressed": "true", text: "Fit", title: "scale the picture to this place, or show it in its own size" });
scale.addEventListener("click", () => {
  const isScaled = scale.getAttribute("aria-pressed") !== "true";
  scale.setAttribute("aria-pressed", String(isScaled));
  screen.scale(isScaled);
});
const screenPanel = el("section", { class: "panel", id: "screen", "aria-label": "screen" },
  el("header", {}, el("h2", { text: "Screen" }),
    canDo ? menu("Keys", [
      ["Ctrl-Alt-Del", () => screen.ctrlAltDel()],
      ...[1, 2, 3, 4, 7].map((number) => [`Ctrl-Alt-F${number}`, () => screen.ctrlAltF(number)]),
      ["Escape", () => screen.press(0xff1b, "Escape")], ["Tab", () => screen.press(0xff09, "Tab")],
      ["Windows", () => screen.press(0xffeb, "MetaLeft")], ["Print", () => screen.press(0xff61, "PrintScreen")],
      ["Other keys…", pressOther],
    ]) : null,
    canDo ? el("button", { onclick: pasteIntoGuest, text: "Paste…" }) : null, clipboard, scale,
    el("a", { class: "button", href: `${base}/screen.png`, download: `${name}.png`, text: "Picture" }),
    canDo ? menu("Viewer", [
      ["A .vnc file, for a viewer on this host", () => location.assign(`${base}/screen.vnc`)],
      ["A .vv file, for remote-viewer (SPICE)", () => (vm?.has_spice ? location.assign(`${base}/screen.vv`) : tell('This machine has no SPICE: display = "spice"', { bad: true }))],
      ["From another host…", showTunnel],
    ]) : null,
    el("button", { onclick: () => screenPanel.requestFullscreen(), text: "Full screen" })),
  screenPlace);
const screen = new ScreenView(screenPlace, name, {
  looksOnly: !canDo,
  onClipboard: (text) => { guestText = text; clipboard.hidden = false; },
});

// A VNC server that only this host reaches is brought to another one by ssh; a desktop there opens the link.
function showTunnel() {
  const dialog = el("dialog", {}, el("h2", { text: "The screen in a viewer on another host" }),
    el("p", { class: "small" }, "On the host of this server, this prints an ssh command to run where you sit:"),
    el("pre", { class: "output", text: `unhinged tunnel ${name} USER@HOST` }),
    el("p", { class: "small" }, "Then open ", el("a", { href: "vnc://127.0.0.1:5900", text: "vnc://127.0.0.1:5900" }), " there."),
    el("form", { method: "dialog", class: "row" }, el("button", { class: "main", text: "Done" })));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

async function pressOther() {
  const keys = await askForText("Press keys together", { hint: "as ctrl-alt-f5, alt-tab, shift-f10", button: "Press" });
  if (keys) await ask("POST", `${base}/keys`, { keys }).catch(tellError);
}

async function pasteIntoGuest() {
  const value = await navigator.clipboard.readText().catch(() => "");
  const text = await askForText("Paste into the guest", {
    hint: "It goes to the guest's clipboard where the guest has one to give, and is typed on its keyboard.", value, button: "Paste", lines: true,
  });
  if (!text) return;
  screen.setClipboard(text);
  await ask("POST", `${base}/type`, { text }).catch(tellError);
  screen.focus();
}

// -- the consoles -------------------------------------------------------------------------------------------------

const consolePlace = el("div", { class: "view" });
const consoleTabs = el("div", { class: "tabs", role: "tablist", "aria-label": "consoles" });
let console_ = null;
const find = el("input", { type: "search", placeholder: "Find", "aria-label": "find in the console", size: 8, hidden: true });
find.addEventListener("keydown", (event) => {
  if (event.key === "Enter") event.shiftKey ? console_.search.findPrevious(find.value) : console_.search.findNext(find.value);
  if (event.key === "Escape") { find.hidden = true; console_.focus(); }
});
const consolePanel = el("section", { class: "panel", id: "console", "aria-label": "console" },
  el("header", {}, consoleTabs, find,
    el("button", { onclick: () => { find.hidden = !find.hidden; find.focus(); }, text: "Find" }),
    el("a", { class: "button", href: `${base}/logs/serial`, target: "_blank", rel: "noopener", text: "Log" }),
    el("button", { onclick: () => consolePanel.requestFullscreen(), text: "Full screen" })),
  consolePlace);
const pair = el("div", { class: "pair" }, screenPanel, consolePanel);
main.append(pair);

function showConsole(which) {
  console_?.close();
  for (const tab of consoleTabs.children) tab.setAttribute("aria-selected", String(tab.textContent === which));
  console_ = new ConsoleView(consolePlace, name, which, { canType: canDo, onLeave: () => consoleTabs.querySelector('[aria-selected="true"]')?.focus() });
  globalThis.console_ = console_;
}

function offerConsoles(names) {
  const offered = canDo ? names : names.filter((each) => each !== "shell");
  if (consoleTabs.dataset.offered === offered.join()) return;
  consoleTabs.dataset.offered = offered.join();
  const before = console_?.console;
  consoleTabs.replaceChildren(...offered.map((each) => el("button", { role: "tab", "aria-selected": "false", onclick: () => { showConsole(each); console_.focus(); }, text: each })));
  if (!offered.includes(before)) showConsole(offered[0]);
  else for (const tab of consoleTabs.children) tab.setAttribute("aria-selected", String(tab.textContent === before));
}

// -- the rest -----------------------------------------------------------------------------------------------------

const timeline = el("div", { class: "timeline" });
const timelinePanel = el("section", { class: "panel", "aria-label": "boot" }, el("header", {}, el("h2", { text: "Boot" })), el("div", { class: "body" }, timeline));

function drawTimeline(phases) {
  const reached = Object.entries(phases);
  const whole = Math.max(0.001, ...reached.map(([, at]) => at));
  let before = 0;
  const rows = reached.flatMap(([phase, at]) => {
    const bar = el("i");
    bar.style.left = `${(100 * before) / whole}%`;
    bar.style.width = `${(100 * (at - before)) / whole}%`;
    const row = [el("span", { text: phase }), el("span", { class: "track" }, bar), el("span", { class: "at", text: `${at.toFixed(2)} s` })];
    before = at;
    return row;
  });
  timeline.replaceChildren(...(rows.length ? rows : [el("span", { class: "quiet", text: "nothing is known of a boot" })]));
}

const messages = el("ul", { class: "messages", tabindex: "0", "aria-label": "messages" });
const messagesPanel = el("section", { class: "panel", "aria-label": "messages" }, el("header", {}, el("h2", { text: "Messages" })), messages);
const MESSAGES_MAX = 300;

function showMessage(message) {
  const isAtEnd = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 40;
  const data = message.data ?? {};
  const show = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const details = Object.entries(data.details ?? {}).map(([key, value]) => `${key} ${show(value)}`).join(", ");
  messages.append(el("li", {}, el("time", { text: new Date(message.timestamp).toLocaleTimeString() }),
    el("span", { class: "kind", text: `${message.direction === "host-to-vm" ? "→" : "←"} ${message.type}` }),
    el("span", { class: "text" }, `${data.message ?? ""} `, el("span", { class: "details", text: details.slice(0, 300) }))));
  while (messages.childElementCount > MESSAGES_MAX) messages.firstChild.remove();
  if (isAtEnd) messages.scrollTop = messages.scrollHeight;
}

const snapshots = snapshotsPanel(name, { canDo });
const parts = el("div", { class: "parts" }, timelinePanel, messagesPanel, snapshots.element);
if (canDo) parts.append(commandPanel(), filesPanel(name));
main.append(parts);

function commandPanel() {
  const field = el("input", { class: "grow mono", placeholder: "uname -a", "aria-label": "a command for the guest's shell", autocomplete: "off", spellcheck: "false" });
  const output = el("pre", { class: "output", hidden: true });
  const button = el("button", { class: "main", text: "Run" });
  const form = el("form", { class: "row" }, field, button);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!field.value.trim()) return;
    act(button, async () => {
      const found = await ask("POST", `${base}/exec`, { argv: ["/bin/sh", "-c", field.value] });
      output.hidden = false;
      output.replaceChildren(found.stdout, el("span", { class: "err", text: found.stderr }),
        el("span", { class: "quiet", text: `exit code ${found.exit_code}, ${found.seconds.toFixed(2)} s${found.truncated ? ", cut" : ""}` }));
    });
  });
  return el("section", { class: "panel", "aria-label": "run a command" }, el("header", {}, el("h2", { text: "Run a command" })), el("div", { class: "body" }, form, output));
}

async function share() {
  const hours = await askForText("For how many hours may whoever has the link look?", { value: "24", button: "Make the link" });
  if (!hours) return;
  try {
    const { path } = await ask("POST", `${base}/shares`, { minutes: Number(hours) * 60 });
    await askForText("This link lets whoever has it look at this machine, and nothing else", { value: new URL(path, location.href).href, button: "Done" });
  } catch (error) { tellError(error); }
}

async function endShares() {
  try {
    const { ended } = await ask("DELETE", `${base}/shares`, {});
    tell(`${ended} links were ended`);
  } catch (error) { tellError(error); }
}

// -- how it does --------------------------------------------------------------------------------------------------

const live = new Live({ messagesOf: name, onOpen: () => messages.replaceChildren(), onMessage: showMessage });
const addresses = new Addresses(name);
let run = null;
let vm = null;
let wasAway = false;

function showLine() {
  const facts = vm.pid
    ? [["up", formatSince(vm.started_at)], ["CPU", vm.cpu_percent === null ? "…" : `${Math.round(vm.cpu_percent)} %`], ["memory", formatBytes(vm.memory_bytes)],
      ["CPUs", vm.cpus], ["guest memory", formatBytes(vm.memory_limit_bytes)], ["runs by", vm.accelerator], ["pid", vm.pid], ["addresses", addresses.found.join(", ")], ["ports", vm.forwards.join(", ")]]
    : [["kind", vm.kind]];
  line.replaceChildren(...facts.filter(([, value]) => value).map(([label, value]) => el("span", {}, `${label} `, el("b", { text: String(value) }))));
}

async function lookCloser() {
  const found = await ask("GET", base).catch(() => null);
  if (!found) return;
  drawTimeline(found.phases);
  note.hidden = !(found.trouble || found.note);
  note.textContent = found.trouble || found.note;
  if (vm?.pid && !found.agent_ready && found.has_agent && !found.trouble) setTimeout(lookCloser, 1000);
}

live.watch(() => {
  const seen = live.get(name);
  if (!live.isConnected || !seen) {
    note.hidden = false;
    note.textContent = live.isConnected ? "There is no such machine any more." : `${live.trouble}; it is asked again…`;
    wasAway = true;
    return;
  }
  const isNew = vm === null || wasAway || seen.run !== run;
  wasAway = false;
  vm = seen;
  run = seen.run;
  pill.textContent = vm.state;
  pill.className = `pill ${vm.state}`;
  controls.show(vm, canDo);
  showLine();
  offerConsoles(vm.consoles);
  const hasScreen = vm.kind === "vm" && (vm.has_screen || !vm.pid);
  screenPanel.hidden = !hasScreen;
  pair.classList.toggle("alone", !hasScreen);
  snapshots.element.hidden = vm.kind !== "vm";
  screen.follow(vm);
  if (isNew) {
    lookCloser();
    snapshots.look();
    addresses.look(vm);
  }
});
setInterval(() => { if (vm?.pid) showLine(); }, 1000);
// For whoever opens the browser's own console, and for tests.
globalThis.screen_ = screen;
