// What all pages share: making elements, asking the server, telling the user, light and dark.

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "text") made.textContent = value;
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export class Refused extends Error {
  constructor(failure, status) {
    super(failure.message);
    this.hint = failure.hint ?? "";
    this.evidence = failure.evidence ?? [];
    this.status = status;
  }
}

export async function ask(method, path, body) {
  let response;
  try {
    response = await fetch(path, {
      method,
      body: body === undefined ? undefined : JSON.stringify(body),
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
    });
  } catch {
    throw new Refused({ message: "the server does not answer", hint: "does `unhinged web` still run?" }, 0);
  }
  const document_ = await response.json().catch(() => ({}));
  if (!response.ok) {
    if (response.status === 401 && location.pathname !== "/login") location.assign("/login");
    throw new Refused(document_.error ?? { message: `${response.status} ${response.statusText}` }, response.status);
  }
  return document_;
}

export const vmPath = (name) => `/api/vms/${encodeURIComponent(name)}`;

export async function socketUrl(name, what, query = {}) {
  const purpose = what === "screen" ? { for: "screen" } : { for: "console", console: query.console };
  const { ticket } = await ask("POST", `${vmPath(name)}/tickets`, purpose);
  const url = new URL(`${vmPath(name)}/${what}`, location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = new URLSearchParams({ ...query, ticket });
  return url.href;
}

export function tell(text, { hint = "", bad = false } = {}) {
  let place = document.getElementById("told");
  if (!place) {
    place = el("div", { id: "told", role: "status", "aria-live": "polite" });
    document.body.append(place);
  }
  const told = el("div", { class: bad ? "bad" : "" }, text, hint ? el("small", { text: hint }) : null);
  place.append(told);
  setTimeout(() => told.remove(), bad ? 9000 : 4000);
}

export const tellError = (error) => tell(error.message, { hint: error.hint, bad: true });

// Runs what a button does, shows that it is under way, and tells what went wrong.
export async function act(button, work) {
  button.classList.add("busy");
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    tellError(error);
    return undefined;
  } finally {
    button.classList.remove("busy");
    button.disabled = false;
  }
}

export function isDark() {
  const chosen = localStorage.getItem("theme");
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

export function applyTheme() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
  dispatchEvent(new CustomEvent("theme"));
}

function toggleTheme() {
  localStorage.setItem("theme", isDark() ? "light" : "dark");
  applyTheme();
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", applyTheme);
applyTheme();

// Puts the bar at the top of the page, and says who is logged in.
export async function begin(current) {
  const me = await ask("GET", "/api/me");
  document.documentElement.dataset.role = me.role;
  const link = (path, name) => el("a", { href: path, "aria-current": current === path ? "page" : null, text: name });
  const bar = el("header", { class: "bar" },
    el("a", { class: "skip", href: "#main", text: "to the content" }),
    el("a", { class: "brand", href: me.vm ? `/vm/${me.vm}` : "/" }, el("img", { src: "/favicon.ico", alt: "" }), el("span", { text: "unhinged" })),
    el("nav", { "aria-label": "pages" }, me.vm ? [] : [link("/", "Machines"), link("/consoles", "Consoles")], link("/about", "About")),
    el("span", { class: "who", text: me.role === "operator" ? me.user : `${me.user} (looks only)` }),
    el("button", { class: "plain", title: "light or dark", "aria-label": "switch between light and dark", onclick: toggleTheme, text: "◐" }),
    el("button", { class: "plain", onclick: async () => { await ask("POST", "/api/logout").catch(() => {}); location.assign("/login"); }, text: "Log out" }));
  document.body.prepend(bar);
  return me;
}

export function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let index = 0;
  let value = bytes;
  while (value >= 1024 && index < units.length - 1) { value /= 1024; index += 1; }
  return `${value >= 100 || index === 0 ? Math.round(value) : value.toFixed(1)} ${units[index]}`;
}

export function formatSince(stamp) {
  const seconds = Math.max(0, Math.floor((Date.now() - Date.parse(stamp)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

// A dialog with a field for text; gives what was entered, or null.
export function askForText(title, { hint = "", value = "", button = "OK", lines = false } = {}) {
  return new Promise((resolve) => {
    const field = el(lines ? "textarea" : "input", { "aria-label": title, value });
    const dialog = el("dialog", {},
      el("form", { method: "dialog" }, el("h2", { text: title }), hint ? el("p", { class: "quiet small", text: hint }) : null, field,
        el("div", { class: "row" }, el("button", { value: "no", formnovalidate: true, text: "Cancel" }), el("button", { class: "main", value: "yes", text: button }))));
    dialog.addEventListener("close", () => {
      resolve(dialog.returnValue === "yes" ? field.value : null);
      dialog.remove();
    });
    document.body.append(dialog);
    dialog.showModal();
    field.focus();
  });
}

export function menu(label, entries) {
  const list = el("div", { hidden: true, role: "menu" });
  const button = el("button", { "aria-haspopup": "menu", "aria-expanded": "false", text: label });
  const show = (shown) => {
    list.hidden = !shown;
    button.setAttribute("aria-expanded", String(shown));
    if (shown) list.querySelector("button:not(:disabled)")?.focus();
  };
  for (const entry of entries) {
    if (!entry) continue;
    const [name, work, attributes = {}] = entry;
    list.append(el("button", { role: "menuitem", ...attributes, onclick: () => { show(false); work(); }, text: name }));
  }
  button.addEventListener("click", () => show(list.hidden));
  const made = el("div", { class: "menu" }, button, list);
  made.addEventListener("focusout", (event) => { if (!made.contains(event.relatedTarget)) show(false); });
  made.addEventListener("keydown", (event) => {
    const items = [...list.children];
    const at = items.indexOf(document.activeElement);
    if (event.key === "Escape") { show(false); button.focus(); }
    if (event.key === "ArrowDown" && at >= 0) items[(at + 1) % items.length].focus();
    if (event.key === "ArrowUp" && at >= 0) items[(at + items.length - 1) % items.length].focus();
  });
  return made;
}
