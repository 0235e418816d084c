// The buttons that start, stop and hold a machine; on its card and on its page.

import { act, ask, el, menu, tell, vmPath } from "./ui.js";

const DOES = {
  start: { text: "Start", path: "start", when: (vm) => !vm.pid && vm.is_declared, main: true },
  resume: { text: "Resume", path: "resume", when: (vm) => vm.state === "PAUSED", main: true },
  pause: { text: "Pause", path: "pause", when: (vm) => vm.state === "RUNNING" && vm.kind === "vm" },
  snapshot: {
    text: "Snapshot", path: "snapshot", body: { action: "save" }, when: (vm) => Boolean(vm.pid) && vm.kind === "vm",
    say: ({ snapshot }) => `kept as ${snapshot.tag}`,
  },
  stop: { text: "Stop", path: "stop", when: (vm) => Boolean(vm.pid) },
  restart: { text: "Restart", path: "restart", when: (vm) => Boolean(vm.pid) && vm.is_declared },
  kill: { text: "Kill", path: "kill", when: (vm) => Boolean(vm.pid), danger: true },
};

function run(vm, what, button, onDone) {
  const does = DOES[what];
  return act(button, async () => {
    const done = await ask("POST", `${vmPath(vm.name)}/${does.path}`, does.body ?? {});
    if (does.say) tell(does.say(done));
    onDone(what);
  });
}

// Buttons for what can be done now; remade only when that changes, so that none moves away under a finger.
export class Controls {
  constructor(place, { more = [], onDone = () => {} } = {}) {
    this.place = place;
    this.onDone = onDone;
    this.more = more;
    this.shown = "";
  }

  show(vm, canDo) {
    const now = canDo ? Object.keys(DOES).filter((what) => DOES[what].when(vm)) : [];
    const key = now.join();
    if (key === this.shown && this.place.childElementCount) return;
    this.shown = key;
    const isRare = (what) => what === "restart" || what === "kill";
    const buttons = now.filter((what) => !isRare(what)).map((what) => el("button", {
      class: DOES[what].main ? "main" : "", onclick: (event) => run(vm, what, event.currentTarget, this.onDone), text: DOES[what].text,
    }));
    const rare = now.filter(isRare);
    const entries = [...rare.map((what) => [DOES[what].text, () => run(vm, what, this.place.querySelector("button"), this.onDone), { class: DOES[what].danger ? "danger" : "" }]), ...(canDo ? this.more : [])];
    this.place.replaceChildren(...buttons, ...(entries.length ? [menu("More", entries)] : []));
  }
}
