import { applyTheme, ask } from "./ui.js";

applyTheme();
const form = document.getElementById("form");
const trouble = document.getElementById("trouble");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { token, user, password } = form.elements;
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    const body = user.value ? { user: user.value, password: password.value } : { token: token.value.trim() };
    const me = await ask("POST", "/api/login", body);
    location.assign(me.vm ? `/vm/${me.vm}` : "/");
  } catch (error) {
    trouble.textContent = error.hint ? `${error.message}; ${error.hint}` : error.message;
    trouble.hidden = false;
    button.disabled = false;
  }
});
