// The guest's screen in the page: noVNC on a WebSocket.

import RFB from "/libraries/novnc/core/rfb.js";
import { el, socketUrl } from "./ui.js";

const F1 = 0xffbe;
const CONTROL = [0xffe3, "ControlLeft"];
const ALT = [0xffe9, "AltLeft"];

export class ScreenView {
  // place: an element of class "view". looksOnly: keys and pointer stay here.
  constructor(place, name, { looksOnly = false, onClipboard = () => {}, onConnect = () => {} } = {}) {
    this.place = place;
    this.name = name;
    this.looksOnly = looksOnly;
    this.onClipboard = onClipboard;
    this.onConnect = onConnect;
    this.isScaled = true;
    this.wait = 300;
    this.vm = null;
    this.inner = el("div", { class: "screen-view" });
    this.over = el("div", { class: "over", role: "status" });
    place.replaceChildren(this.inner, this.over);
    // Keys go to the guest, Tab among them: these three together lead back to the page.
    this.inner.addEventListener("keydown", (event) => {
      if (event.ctrlKey && event.altKey && event.shiftKey) { this.rfb?.blur(); place.closest(".panel")?.querySelector("button")?.focus(); }
    }, true);
    this.say("…");
  }

  // Follows what is known of the machine: shows its screen while it has one.
  follow(vm) {
    this.vm = vm;
    if (vm?.has_screen) {
      if (!this.rfb && !this.timer) this.connect();
    } else if (!this.rfb) {
      clearTimeout(this.timer);
      this.timer = null;
      this.say(!vm ? "…" : vm.pid ? "This machine has no screen." : `It is ${vm.state.toLowerCase()}. Its screen is shown here when it runs.`);
    }
  }

  async connect() {
    this.timer = -1;
    try {
      const url = await socketUrl(this.name, "screen");
      this.rfb = new RFB(this.inner, url, { shared: true, wsProtocols: ["binary"] });
    } catch (error) {
      this.again(error.message);
      return;
    }
    const { rfb } = this;
    rfb.viewOnly = this.looksOnly;
    rfb.scaleViewport = this.isScaled;
    rfb.background = "#0b0f13";
    rfb.showDotCursor = true;
    rfb.addEventListener("connect", () => { this.wait = 300; this.say(""); this.onConnect(); });
    rfb.addEventListener("clipboard", (event) => this.onClipboard(event.detail.text));
    rfb.addEventListener("disconnect", () => { if (this.rfb === rfb) this.again("the screen is gone"); });
    rfb.addEventListener("securityfailure", (event) => this.again(event.detail.reason ?? "the screen refuses"));
    this.timer = null;
  }

  again(why) {
    this.rfb = null;
    this.say(`${why}; it is asked again…`);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => { this.timer = null; this.follow(this.vm); }, this.wait);
    this.wait = Math.min(5000, this.wait * 1.7);
  }

  say(text) {
    this.over.hidden = !text;
    this.over.replaceChildren(el("span", { text }));
  }

  focus() { this.rfb?.focus(); }

  scale(isScaled) {
    this.isScaled = isScaled;
    if (this.rfb) { this.rfb.scaleViewport = isScaled; this.rfb.clipViewport = !isScaled; this.rfb.dragViewport = false; }
    this.inner.style.overflow = isScaled ? "hidden" : "auto";
  }

  ctrlAltDel() { this.rfb?.sendCtrlAltDel(); this.focus(); }

  ctrlAltF(number) {
    if (!this.rfb) return;
    const key = [F1 + number - 1, `F${number}`];
    for (const each of [CONTROL, ALT, key]) this.rfb.sendKey(...each, true);
    for (const each of [key, ALT, CONTROL]) this.rfb.sendKey(...each, false);
    this.focus();
  }

  press(keysym, code) { this.rfb?.sendKey(keysym, code); this.focus(); }

  setClipboard(text) { this.rfb?.clipboardPasteFrom(text); }
}
