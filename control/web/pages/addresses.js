// The addresses a guest has, which its agent tells; asked once for each run, until it has some.

import { ask, vmPath } from "./ui.js";

const PAUSE_MS = 3000;

export class Addresses {
  constructor(name) {
    this.name = name;
    this.found = [];
    this.run = null;
    this.askedAt = 0;
  }

  async look(vm) {
    if (vm.run !== this.run) {
      this.run = vm.run;
      this.found = [];
    }
    if (!vm.pid || !vm.has_agent || this.found.length || Date.now() - this.askedAt < PAUSE_MS) return;
    this.askedAt = Date.now();
    const { addresses } = await ask("GET", `${vmPath(this.name)}/addresses`).catch(() => ({ addresses: [] }));
    this.found = addresses;
  }
}
