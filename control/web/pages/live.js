// How the machines do, as the server tells it; goes on by itself after a server that was away.

export class Live {
  constructor() {
    this.vms = new Map();
    this.order = [];
    this.listeners = new Set();
    this.trouble = "";
    this.isConnected = false;
    this.wait = 500;
    this.open();
  }

  open() {
    this.source = new EventSource("/api/events");
    this.source.addEventListener("vms", (event) => {
      const news = JSON.parse(event.data);
      if (!this.isConnected) this.vms.clear();
      this.isConnected = true;
      this.wait = 500;
      for (const name of news.gone) this.vms.delete(name);
      for (const vm of news.vms) this.vms.set(vm.name, vm);
      this.order = news.order;
      this.trouble = news.trouble;
      this.tellAll(news);
    });
    this.source.addEventListener("error", () => {
      this.isConnected = false;
      this.trouble = "the server does not answer";
      this.tellAll({ vms: [], gone: [] });
      // A browser gives up for good where a server that is just starting refuses, so it is asked anew.
      this.source.close();
      setTimeout(() => this.open(), this.wait);
      this.wait = Math.min(5000, this.wait * 1.6);
    });
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
