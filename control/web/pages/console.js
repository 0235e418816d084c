// A console in the page: xterm.js on a WebSocket. Source of the messages: control/web/consoles.py.

import { FitAddon } from "/libraries/addon-fit/lib/addon-fit.mjs";
import { SearchAddon } from "/libraries/addon-search/lib/addon-search.mjs";
import { Unicode11Addon } from "/libraries/addon-unicode11/lib/addon-unicode11.mjs";
import { WebLinksAddon } from "/libraries/addon-web-links/lib/addon-web-links.mjs";
import { Terminal } from "/libraries/xterm/lib/xterm.mjs";
import { el, isDark, socketUrl } from "./ui.js";

const ACK_BYTES = 64 * 1024;
const DARK = { background: "#0b0f13", foreground: "#d7e0e7", cursor: "#2dd4bf", selectionBackground: "#2f4a5a" };
const LIGHT = {
  background: "#ffffff", foreground: "#17212b", cursor: "#0f766e", selectionBackground: "#bfe3de", black: "#17212b",
  red: "#b42318", green: "#15803d", yellow: "#92600a", blue: "#1d4ed8", magenta: "#9333ea", cyan: "#0e7490", white: "#667085",
  brightBlack: "#475467", brightRed: "#d92d20", brightGreen: "#16a34a", brightYellow: "#b45309", brightBlue: "#2563eb",
  brightMagenta: "#a855f7", brightCyan: "#0891b2", brightWhite: "#344054",
};

export class ConsoleView {
  // place: an element of class "view". canType: whether this user may. onKey: sees keys first, true takes one away.
  constructor(place, name, console_, { canType = true, onKey = () => false, onLeave = () => {} } = {}) {
    this.place = place;
    this.name = name;
    this.console = console_;
    this.canType = canType;
    this.run = "";
    this.position = 0;
    this.turn = "";
    this.holder = "";
    this.wait = 300;
    this.isClosed = false;
    this.over = el("div", { class: "over", hidden: true, role: "status" });
    this.inner = el("div", { class: "terminal-view" });
    place.replaceChildren(this.inner, this.over);
    this.terminal = new Terminal({
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"), fontSize: 14,
      scrollback: 10000, cursorBlink: false, allowProposedApi: true, screenReaderMode: false, disableStdin: !canType,
    });
    this.fit = new FitAddon();
    this.search = new SearchAddon();
    this.terminal.loadAddon(this.fit);
    this.terminal.loadAddon(this.search);
    this.terminal.loadAddon(new Unicode11Addon());
    this.terminal.loadAddon(new WebLinksAddon());
    this.terminal.unicode.activeVersion = "11";
    this.terminal.open(this.inner);
    this.applyTheme = () => {
      this.terminal.options.theme = isDark() ? DARK : LIGHT;
      place.classList.toggle("light", !isDark());
    };
    this.applyTheme();
    addEventListener("theme", this.applyTheme);
    this.keepSilent();
    this.terminal.attachCustomKeyEventHandler((event) => {
      if (event.type === "keydown" && event.ctrlKey && event.key === "]") { event.preventDefault(); onLeave(); return false; }
      return !onKey(event);
    });
    const encoder = new TextEncoder();
    this.terminal.onData((text) => this.type(encoder.encode(text)));
    this.terminal.onBinary((text) => this.type(Uint8Array.from(text, (character) => character.charCodeAt(0))));
    this.terminal.onResize(() => this.tellSize());
    this.watcher = new ResizeObserver(() => this.refit());
    this.watcher.observe(place);
    this.refit();
    this.connect();
  }

  refit() {
    if (this.place.clientWidth > 40 && this.place.clientHeight > 40) this.fit.fit();
  }

  focus() { this.terminal.focus(); }

  // A program may ask the terminal what it is. Whoever has the keyboard answers: others, and the history, must not.
  keepSilent() {
    const isSilent = () => this.isHistory || this.turn !== "yours";
    const { parser } = this.terminal;
    for (const form of [{ final: "c" }, { prefix: ">", final: "c" }, { prefix: "=", final: "c" }, { final: "n" },
      { prefix: "?", final: "n" }, { intermediates: "$", final: "p" }, { prefix: "?", intermediates: "$", final: "p" },
      { prefix: ">", final: "q" }, { final: "t" }]) {
      parser.registerCsiHandler(form, isSilent);
    }
    for (const number of [4, 10, 11, 12]) parser.registerOscHandler(number, (data) => data.includes("?") && isSilent());
    parser.registerDcsHandler({ intermediates: "$", final: "q" }, isSilent);
  }

  async connect() {
    if (this.isClosed) return;
    try {
      const query = { console: this.console, flow: "ack" };
      if (this.run) Object.assign(query, { run: this.run, from: String(this.position) });
      const url = await socketUrl(this.name, "console", query);
      if (this.isClosed) return;
      this.socket = new WebSocket(url);
    } catch (error) {
      this.retry(error.status === 404 ? error.message : "the server does not answer");
      return;
    }
    const { socket } = this;
    socket.binaryType = "arraybuffer";
    socket.onmessage = (event) => (typeof event.data === "string" ? this.hear(JSON.parse(event.data)) : this.show(event.data));
    socket.onclose = () => { if (this.socket === socket) this.retry("the server does not answer"); };
  }

  retry(why) {
    if (this.isClosed) return;
    this.socket = null;
    this.turn = "";
    this.say(`${why}; it is asked again…`);
    setTimeout(() => this.connect(), this.wait);
    this.wait = Math.min(5000, this.wait * 1.7);
  }

  hear(message) {
    switch (message.type) {
      case "attached":
        if (this.run !== message.run || this.position !== message.position) this.terminal.reset();
        this.run = message.run;
        this.position = message.position;
        this.historyEnd = message.size;
        this.isHistory = this.position < this.historyEnd;
        this.received = this.shown = this.acked = 0;
        this.wait = 300;
        this.say("");
        this.tellSize();
        break;
      case "skipped":
        this.position = message.position;
        this.terminal.write(`\r\n\x1b[0;7m ${message.bytes.toLocaleString("en")} bytes are left out here: the log has them \x1b[0m\r\n`);
        break;
      case "turn":
        this.turn = message.turn;
        this.holder = message.holder;
        this.showTurn();
        break;
      case "refused":
        this.holder = message.holder || this.holder;
        this.turn = this.turn === "yours" ? "waiting" : this.turn;
        this.showTurn(message.why);
        break;
      case "note":
        this.say(message.text, { soft: true });
        break;
      case "ended":
        this.turn = "";
        this.say(message.state === "DEFINED" ? "It has not run yet." : `It is ${message.state.toLowerCase()}. What it says when it runs again is shown here.`, { soft: this.run !== "" });
        break;
    }
  }

  show(data) {
    const bytes = new Uint8Array(data);
    this.position += bytes.length;
    this.received += bytes.length;
    const isLast = this.position >= this.historyEnd;
    this.terminal.write(bytes, () => {
      if (isLast) this.isHistory = false;
      this.shown += bytes.length;
      if (this.shown - this.acked >= ACK_BYTES || this.shown === this.received) {
        this.acked = this.shown;
        this.send({ type: "ack", bytes: this.acked });
      }
    });
  }

  type(bytes) {
    if (!this.canType || this.isHistory || this.socket?.readyState !== WebSocket.OPEN) return;
    this.socket.send(bytes);
  }

  send(message) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  tellSize() { this.send({ type: "resize", rows: this.terminal.rows, columns: this.terminal.cols }); }

  steal() {
    this.send({ type: "turn", wants: "steal" });
    this.focus();
  }

  showTurn(why = "") {
    const isElsewhere = this.turn === "waiting" || this.turn === "lost" || (why && this.turn !== "yours");
    if (!isElsewhere) { this.say(""); return; }
    const text = this.holder ? `${this.holder} has the keyboard` : why;
    this.say(text, { soft: true, button: this.canType ? el("button", { onclick: () => this.steal(), text: "Take the keyboard" }) : null });
  }

  say(text, { soft = false, button = null } = {}) {
    this.over.hidden = !text;
    this.over.classList.toggle("soft", soft);
    this.over.replaceChildren(el("span", { text }), ...(button ? [button] : []));
  }

  close() {
    this.isClosed = true;
    removeEventListener("theme", this.applyTheme);
    this.watcher.disconnect();
    this.socket?.close();
    this.terminal.dispose();
  }
}
