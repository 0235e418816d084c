// All machines as cards.

import { Addresses } from "./addresses.js";
import { Controls } from "./controls.js";
import { Live } from "./live.js";
import { begin, el, formatBytes, formatSince, vmPath } from "./ui.js";

const PICTURE_MS = 5000;
const me = await begin("/");
if (me.vm) location.replace(`/vm/${me.vm}`);
const canDo = me.role === "operator";
const cards = new Map();
const place = document.getElementById("cards");
const filter = document.getElementById("filter");
const live = new Live();

class Card {
  constructor(name) {
    this.name = name;
    const page = `/vm/${encodeURIComponent(name)}`;
    this.image = el("img", { alt: "", hidden: true });
    this.blank = el("span");
    this.pill = el("span", { class: "pill" });
    this.facts = el("dl", { class: "facts" });
    this.last = el("div", { class: "last" });
    this.note = el("div", { class: "note", hidden: true });
    this.controls = el("span", { class: "row tight" });
    this.views = el("span", { class: "row tight" });
    this.addresses = new Addresses(name);
    this.does = new Controls(this.controls);
    this.link = el("a", { class: "picture", href: page, "aria-label": `${name}: screen and console` }, this.image, this.blank);
    this.element = el("article", { class: "card", "aria-label": name }, this.link,
      el("div", { class: "body" }, el("div", { class: "row" }, el("h2", { class: "grow" }, el("a", { href: page, text: name })), this.pill), this.facts, this.last, this.note),
      el("div", { class: "does row tight" }, this.controls, el("span", { class: "grow" }), this.views));
    this.image.addEventListener("load", () => { this.image.hidden = false; this.blank.hidden = true; });
    this.image.addEventListener("error", () => this.showBlank());
    this.isSeen = false;
  }

  showBlank() {
    this.image.hidden = true;
    this.blank.hidden = false;
    this.blank.textContent = this.vm.pid ? (this.vm.has_screen ? "" : "no screen") : "not running";
  }

  show(vm) {
    const had = this.vm;
    this.vm = vm;
    this.pill.textContent = vm.state;
    this.pill.className = `pill ${vm.state}`;
    this.showFacts();
    this.last.textContent = vm.message;
    this.last.title = vm.message;
    this.note.hidden = !vm.note;
    this.note.textContent = vm.note;
    this.does.show(vm, canDo);
    const views = vm.pid ? `${vm.has_screen}` : "";
    if (this.shownViews !== views) {
      this.shownViews = views;
      const page = `/vm/${encodeURIComponent(this.name)}`;
      this.views.replaceChildren(...(!vm.pid ? [] : [el("a", { class: "button", href: `/consoles#${encodeURIComponent(this.name)}:${vm.consoles[0]}`, text: "Console" }), ...(vm.has_screen ? [el("a", { class: "button", href: `${page}#screen`, text: "Screen" })] : [])]));
    }
    if (!vm.has_screen || had?.run !== vm.run) this.showBlank();
    if (vm.has_screen && had?.run !== vm.run) this.takePicture();
  }

  showFacts() {
    const { vm } = this;
    const rows = vm.pid
      ? [["up", formatSince(vm.started_at)], ["CPU", vm.cpu_percent === null ? "…" : `${Math.round(vm.cpu_percent)} %${vm.cpus ? ` of ${vm.cpus * 100}` : ""}`],
        ["memory", formatBytes(vm.memory_bytes) + (vm.memory_limit_bytes ? ` (guest has ${formatBytes(vm.memory_limit_bytes)})` : "")],
        ...(vm.accelerator ? [["runs by", vm.accelerator]] : []), ...(this.addresses.found.length ? [["address", this.addresses.found.join(", ")]] : []), ...(vm.forwards.length ? [["ports", vm.forwards.join(", ")]] : [])]
      : [["kind", vm.kind]];
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [el("dt", { text: name }), el("dd", { text: value, title: value })]));
  }

  takePicture() {
    if (this.isSeen && !document.hidden) this.addresses.look(this.vm);
    if (this.isSeen && this.vm?.has_screen && !document.hidden) this.image.src = `${vmPath(this.name)}/screen.png?${Date.now()}`;
  }
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const card = cards.get(entry.target.dataset.name);
    if (!card) continue;
    card.isSeen = entry.isIntersecting;
    if (entry.isIntersecting && card.image.hidden) card.takePicture();
  }
});

function isWanted(vm) {
  return filter.value.toLowerCase().split(/\s+/).every((word) => `${vm.name} ${vm.state} ${vm.kind}`.toLowerCase().includes(word));
}

function choose() {
  let shown = 0;
  for (const card of cards.values()) {
    card.element.hidden = !isWanted(card.vm);
    if (!card.element.hidden) shown += 1;
  }
  const running = [...cards.values()].filter((card) => card.vm.pid).length;
  document.getElementById("count").textContent = cards.size ? `${running} of ${cards.size} run` : "";
  const empty = document.getElementById("empty");
  empty.hidden = shown > 0 || !live.isConnected;
  empty.textContent = cards.size ? "No machine is like that." : "There are no machines: declare one in unhinged.toml, or start one with `make start`.";
}

live.watch((news) => {
  for (const name of news.gone) {
    cards.get(name)?.element.remove();
    cards.delete(name);
  }
  for (const vm of news.vms) {
    if (!cards.has(vm.name)) {
      const card = new Card(vm.name);
      card.element.dataset.name = vm.name;
      cards.set(vm.name, card);
      seen.observe(card.element);
    }
    cards.get(vm.name).show(vm);
  }
  const wanted = live.order.map((name) => cards.get(name)?.element).filter(Boolean);
  if (wanted.some((element, index) => place.children[index] !== element)) place.replaceChildren(...wanted);
  const trouble = document.getElementById("trouble");
  trouble.hidden = !live.trouble;
  trouble.textContent = live.trouble;
  choose();
});
filter.addEventListener("input", choose);
setInterval(() => { for (const card of cards.values()) if (card.vm?.pid) card.showFacts(); }, 1000);
setInterval(() => { for (const card of cards.values()) card.takePicture(); }, PICTURE_MS);
