// How the machines do, as the server tells it; goes on by itself after a server that was away.
// A WebSocket, because a browser has only six other connections to a server, for all its tabs together.

import { ask } from "./ui.js";

export class Live {
  // messagesOf: the machine whose messages are wanted too.
  constructor({ messagesOf = "", onOpen = () => {}, onMessage = () => {} } = {}) {
    this.vms = new Map();
    this.order = [];
    this.listeners = new Set();
    this.trouble = "";
    this.isConnected = false;
    this.wait = 500;
    this.messagesOf = messagesOf;
    this.onOpen = onOpen;
    this.onMessage = onMessage;
    this.open();
  }

  async open() {
    try {
      const { ticket } = await ask("POST", "/api/tickets", {});
      const url = new URL("/api/live", location.href);
      url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
      url.search = new URLSearchParams({ ticket, ...(this.messagesOf ? { messages: this.messagesOf } : {}) });
      this.socket = new WebSocket(url);
    } catch {
      this.again();
      return;
    }
    this.socket.onopen = () => this.onOpen();
    this.socket.onmessage = (event) => this.hear(JSON.parse(event.data));
    this.socket.onclose = () => this.again();
  }

  hear({ event, data }) {
    if (event === "message") {
      this.onMessage(data);
      return;
    }
    if (!this.isConnected) this.vms.clear();
    this.isConnected = true;
    this.wait = 500;
    for (const name of data.gone) this.vms.delete(name);
    for (const vm of data.vms) this.vms.set(vm.name, vm);
    this.order = data.order;
    this.trouble = data.trouble;
    this.tellAll(data);
  }

  again() {
    this.isConnected = false;
    this.trouble = "the server does not answer";
    this.tellAll({ vms: [], gone: [] });
    setTimeout(() => this.open(), this.wait);
    this.wait = Math.min(5000, this.wait * 1.6);
  }

  tellAll(news) {
    for (const listener of this.listeners) listener(news);
  }

  watch(listener) {
    this.listeners.add(listener);
    if (this.isConnected) listener({ vms: [...this.vms.values()], gone: [] });
    return () => this.listeners.delete(listener);
  }

  get(name) {
    return this.vms.get(name);
  }
}
