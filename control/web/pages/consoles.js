// Several consoles beside each other. Which ones stands in the address: #web:ttyS0,db:hvc0

import { ConsoleView } from "./console.js";
import { Live } from "./live.js";
import { begin, el } from "./ui.js";

const me = await begin("/consoles");
const canType = me.role === "operator";
const grid = document.getElementById("grid");
const tabs = document.getElementById("tabs");
const add = document.getElementById("add");
const columns = document.getElementById("columns");
const open = new Map();
let active = "";

function remember() {
  history.replaceState(null, "", `#${[...open.keys()].map((key) => key.split(":").map(encodeURIComponent).join(":")).join(",")}`);
  document.getElementById("empty").hidden = open.size > 0;
  grid.hidden = open.size === 0;
  grid.style.setProperty("--columns", Math.min(Number(columns.value), Math.max(1, open.size)));
  grid.classList.toggle("many", open.size > 1);
}

function activate(key, { focus = true } = {}) {
  active = key;
  for (const [other, { panel, tab }] of open) {
    panel.classList.toggle("active", other === key);
    tab.setAttribute("aria-selected", String(other === key));
  }
  if (focus) open.get(key)?.view.focus();
}

// Alt with a digit switches; the rest of the keys is the guest's.
function takeKey(event) {
  if (!event.altKey || event.ctrlKey || event.metaKey || !/^Digit[1-9]$/.test(event.code)) return false;
  if (event.type === "keydown") {
    const key = [...open.keys()][Number(event.code.slice(5)) - 1];
    event.preventDefault();
    if (key) activate(key);
  }
  return true;
}

function openConsole(key) {
  const [name, console_] = key.split(":");
  if (!name || !console_ || open.has(key)) { activate(key); return; }
  const place = el("div", { class: "view" });
  const tab = el("button", { role: "tab", "aria-selected": "false", onclick: () => activate(key), text: key });
  const panel = el("section", { class: "panel", "aria-label": `console ${key}`, onfocusin: () => activate(key, { focus: false }) },
    el("header", {}, el("h2", {}, el("a", { href: `/vm/${encodeURIComponent(name)}`, text: name }), ` ${console_}`),
      el("button", { onclick: () => panel.requestFullscreen(), text: "Full screen" }),
      el("button", { "aria-label": `close ${key}`, onclick: () => close(key), text: "Close" })), place);
  grid.append(panel);
  tabs.append(tab);
  open.set(key, { panel, tab, view: null });
  remember();
  open.get(key).view = new ConsoleView(place, name, console_, { canType, onKey: takeKey, onLeave: () => tab.focus() });
  activate(key);
}

function close(key) {
  const { panel, tab, view } = open.get(key);
  view.close();
  panel.remove();
  tab.remove();
  open.delete(key);
  remember();
  if (active === key && open.size) activate([...open.keys()][0]);
}

const live = new Live();
live.watch(() => {
  const offered = live.order.flatMap((name) => (live.get(name)?.consoles ?? []).map((console_) => `${name}:${console_}`));
  if (add.dataset.offered === offered.join()) return;
  add.dataset.offered = offered.join();
  add.replaceChildren(el("option", { value: "", text: "Open a console…" }), ...offered.map((key) => el("option", { value: key, text: key.replace(":", " ") })));
});
add.addEventListener("change", () => { if (add.value) openConsole(add.value); add.value = ""; });
columns.addEventListener("change", remember);
addEventListener("keydown", (event) => takeKey(event));
for (const key of location.hash.slice(1).split(",").filter(Boolean)) openConsole(key.split(":").map(decodeURIComponent).join(":"));
remember();
// For whoever opens the browser's own console, and for tests.
globalThis.consoles = open;
