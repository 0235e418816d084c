// Before anything is drawn, so that a dark page does not begin with a white flash.
{
  const chosen = localStorage.getItem("theme");
  document.documentElement.dataset.theme = (chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
}
