// Theme, copying, printing, and which page of the report is shown.
"use strict";

function showTheme() {
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(scheme() === "dark"));
}

document.getElementById("theme").addEventListener("click", () => {
  const theme = scheme() === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("sae-faithful-theme", theme); } catch (error) { /* not kept, then */ }
  showTheme();
  recolourFigures();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showTheme(); recolourFigures(); });

for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const pre = document.getElementById(button.dataset.copies);
    const said = button.nextElementSibling;
    try {
      await navigator.clipboard.writeText(pre.textContent);
      said.textContent = "Copied.";
    } catch (error) {
      // Browsers may refuse; then it is at least selected.
      getSelection().selectAllChildren(pre);
      said.textContent = "Selected: copy it with the keyboard.";
    }
  });
}

const menu = document.querySelector(".menu");
menu.addEventListener("click", (event) => { if (event.target.closest("a")) menu.open = false; });
menu.addEventListener("keydown", (event) => {
  if (event.key === "Escape") { menu.open = false; menu.querySelector("summary").focus(); }
});

const title = document.title;

// #feature/SOURCE/HOOK/VARIANT/SEED/LATENT is a page of its own; any other address is a place in the report.
function showPage() {
  const article = document.getElementById("feature");
  const report = document.getElementById("report");
  const parts = location.hash.startsWith("#feature/") ? location.hash.slice(9).split("/") : null;
  const wasFeature = !article.hidden;
  article.hidden = parts === null;
  report.hidden = parts !== null;
  if (parts) {
    let decoded = [];
    try { decoded = parts.map(decodeURIComponent); } catch (error) { /* an address of no feature */ }
    document.title = visible(showFeature(decoded));
    window.scrollTo(0, 0);
    article.querySelector("h1").focus({ preventScroll: true });
    return;
  }
  article.replaceChildren();
  document.title = title;
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (wasFeature && target) target.scrollIntoView({ behavior: "instant" });
}
addEventListener("hashchange", showPage);

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("main details:not([open])")];
  for (const details of opened) details.open = true;
  for (const place of document.querySelectorAll(".plot")) drawFigure(place);
  for (const place of drawnFigures()) window.Plotly.relayout(place, { template: templates().light, width: 680 });
});
addEventListener("afterprint", () => {
  for (const details of opened) details.open = false;
  for (const place of drawnFigures()) window.Plotly.relayout(place, { template: templates()[scheme()], width: null, autosize: true });
});

showTheme();
showFeatureLists();
showPage();
watchFigures();
