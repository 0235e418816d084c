import { begin, el } from "./ui.js";

await begin("/about");
const { libraries } = await (await fetch("/api/libraries")).json();
document.getElementById("libraries").append(...libraries.map((each) => el("tr", {},
  el("td", {}, el("code", { text: each.package })), el("td", { text: each.version }),
  el("td", {}, el("a", { href: `/libraries/${each.name}/${each.licence_file}`, text: each.licence })))));
