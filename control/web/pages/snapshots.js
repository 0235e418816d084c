// Snapshots of one machine: taken, gone back to, forgotten.

import { act, ask, el, formatBytes, tell, vmPath } from "./ui.js";

export function snapshotsPanel(name, { canDo }) {
  const base = vmPath(name);
  const rows = el("tbody");
  const none = el("p", { class: "quiet small", text: "There is none yet: memory and disks are kept together, and can be gone back to." });
  const field = el("input", { class: "grow", placeholder: "a name, or none for the time", "aria-label": "a name for the snapshot", maxlength: 63, autocomplete: "off", spellcheck: "false" });
  const form = el("form", { class: "row" }, field, el("button", { class: "main", text: "Take one" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const tag = field.value.trim();
    work(form.querySelector("button"), tag ? { action: "save", tag } : { action: "save" }, (kept, seconds) => `kept as ${kept.tag} in ${seconds.toFixed(2)} s`);
  });
  const panel = el("section", { class: "panel", "aria-label": "snapshots" }, el("header", {}, el("h2", { text: "Snapshots" })),
    el("div", { class: "body" }, canDo ? form : null, el("div", { class: "list" }, none, el("table", { class: "files" }, rows))));

  function work(button, body, say) {
    return act(button, async () => {
      const { snapshot, seconds } = await ask("POST", `${base}/snapshot`, body);
      tell(say(snapshot, seconds));
      field.value = "";
      await look();
    });
  }

  function row(kept) {
    const restore = el("button", { type: "button", title: "put the machine back to this", text: "Restore" });
    const forget = el("button", { type: "button", title: "delete the snapshot", "aria-label": `delete ${kept.tag}`, text: "Delete" });
    restore.addEventListener("click", () => work(restore, { action: "restore", tag: kept.tag }, (_, seconds) => `back at ${kept.tag} in ${seconds.toFixed(2)} s`));
    forget.addEventListener("click", () => work(forget, { action: "delete", tag: kept.tag }, () => `${kept.tag} is forgotten`));
    return el("tr", {}, el("td", {}, el("b", { text: kept.tag }), el("div", { class: "quiet small", text: new Date(kept.taken_at).toLocaleString() })),
      el("td", { class: "number", text: formatBytes(kept.bytes) }),
      canDo ? el("td", { class: "number" }, el("span", { class: "row tight plain-buttons" }, restore, forget)) : null);
  }

  async function look() {
    const { snapshots } = await ask("GET", `${base}/snapshots`);
    none.hidden = snapshots.length > 0;
    rows.replaceChildren(...snapshots.reverse().map(row));
  }

  return { element: panel, look: () => look().catch(() => {}) };
}
