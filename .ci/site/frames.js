// The framed inspectors go by the system's light or dark; the page may have been switched to the other one.
const colour = (frame) => {
  const root = frame.contentDocument?.documentElement, dark = document.documentElement.dataset.theme === "dark";
  if (root) { root.setAttribute("theme", dark ? "dark" : "light"); root.style.colorScheme = dark ? "dark" : "light"; }
};
const all = () => document.querySelectorAll("iframe").forEach(colour);
document.addEventListener("load", (event) => event.target.tagName === "IFRAME" && colour(event.target), true);
new MutationObserver(all).observe(document.documentElement, { attributeFilter: ["data-theme"] });
