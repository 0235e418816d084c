// Files of the guest: look around, take, and put there.

import { act, ask, el, formatBytes, tell, tellError, vmPath } from "./ui.js";

const PAGE = 1000;

export function filesPanel(name) {
  const base = vmPath(name);
  const field = el("input", { class: "grow mono", value: "/root", "aria-label": "a directory of the guest", autocomplete: "off", spellcheck: "false" });
  const rows = el("tbody");
  const progress = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "upload" });
  const chooser = el("input", { type: "file", multiple: true, hidden: true });
  const form = el("form", { class: "row" }, field, el("button", { text: "Look" }),
    el("button", { type: "button", onclick: () => chooser.click(), text: "Upload…" }),
    el("button", { type: "button", title: "the whole directory, as tar", onclick: () => download(field.value), text: "Download" }));
  const panel = el("section", { class: "panel", "aria-label": "files" }, el("header", {}, el("h2", { text: "Files" }), el("span", { class: "quiet small", text: "drop files here" })),
    el("div", { class: "body" }, form, progress, chooser, el("div", { class: "list" }, el("table", { class: "files" }, rows))));

  const join = (directory, entry) => `${directory.replace(/\/+$/, "")}/${entry}`;
  const parent = (directory) => directory.replace(/\/+$/, "").replace(/\/[^/]*$/, "") || "/";

  function download(path) {
    const link = el("a", { href: `${base}/files?path=${encodeURIComponent(path)}`, download: "" });
    document.body.append(link);
    link.click();
    link.remove();
  }

  async function look(directory) {
    const { return: found } = await ask("POST", `${base}/agent`, { method: "file_list", params: { path: directory, limit: PAGE } });
    field.value = directory;
    const entries = found.entries.sort((one, other) => (other.type === "directory") - (one.type === "directory") || one.name.localeCompare(other.name));
    const row = (label, work, size) => el("tr", {}, el("td", {}, el("button", { type: "button", onclick: work, text: label })), el("td", { class: "number", text: size }));
    rows.replaceChildren(
      ...(directory === "/" ? [] : [row("../", () => look(parent(directory)).catch(tellError), "")]),
      ...entries.map((entry) => (entry.type === "directory"
        ? row(`${entry.name}/`, () => look(join(directory, entry.name)).catch(tellError), "")
        : row(entry.name, () => download(join(directory, entry.name)), entry.type === "file" ? formatBytes(entry.size) : entry.type))),
      ...(found.total > entries.length ? [el("tr", {}, el("td", { colspan: 2, class: "quiet", text: `and ${found.total - entries.length} more` }))] : []));
  }

  // XMLHttpRequest, because fetch does not tell how much of an upload has gone.
  function send(file, path) {
    return new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open("PUT", `${base}/files?path=${encodeURIComponent(path)}`);
      request.upload.onprogress = (event) => { progress.value = event.total ? event.loaded / event.total : 0; };
      request.onload = () => {
        if (request.status === 200) { resolve(); return; }
        let failure = { message: `${request.status} ${request.statusText}`, hint: "" };
        try { failure = JSON.parse(request.responseText).error; } catch { /* what came is no JSON: the status says it */ }
        reject(Object.assign(new Error(failure.message), { hint: failure.hint }));
      };
      request.onerror = () => reject(new Error("the server does not answer"));
      request.send(file);
    });
  }

  async function upload(files) {
    progress.hidden = false;
    try {
      for (const file of files) {
        await send(file, join(field.value, file.name));
        tell(`${file.name} is in ${field.value}`);
      }
      await look(field.value);
    } catch (error) {
      tellError(error);
    } finally {
      progress.hidden = true;
      chooser.value = "";
    }
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    act(form.querySelector("button"), () => look(field.value));
  });
  chooser.addEventListener("change", () => upload([...chooser.files]));
  panel.addEventListener("dragover", (event) => { event.preventDefault(); panel.classList.add("dropping"); });
  panel.addEventListener("dragleave", () => panel.classList.remove("dropping"));
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    panel.classList.remove("dropping");
    upload([...event.dataTransfer.files]);
  });
  return panel;
}
