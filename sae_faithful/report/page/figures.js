// Figures: drawn when they come near, in the colours of the theme.
"use strict";

const figureData = once(() => new Map(jsonOf("figures-data").map((figure) => [figure.id, figure.plotly])));
const templates = once(() => jsonOf("templates-data"));

// The library is 5 MB of text until the first figure needs it.
const loadPlotly = once(() => {
  const source = document.getElementById("plotly-source");
  const script = document.createElement("script");
  script.textContent = source.textContent;
  document.head.append(script);
  source.remove();
  return window.Plotly;
});

function scheme() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function drawFigure(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "true";
  const { data, layout } = structuredClone(figureData().get(place.dataset.figure));
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  };
  place.replaceChildren();
  const failed = () => place.replaceChildren(make("p", { class: "error" }, "This figure could not be drawn."));
  try {
    loadPlotly().newPlot(place, data, { ...layout, template: templates()[scheme()] }, config).catch(failed);
  } catch (error) {
    failed();
    throw error;
  }
}

function drawnFigures() {
  return [...document.querySelectorAll(".plot[data-drawn]")].filter((place) => place.layout);
}

function recolourFigures(colours = scheme()) {
  for (const place of drawnFigures()) window.Plotly.relayout(place, { template: templates()[colours] });
}

function watchFigures() {
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      drawFigure(target);
    }
  }, { rootMargin: "300px 0px" });
  for (const place of document.querySelectorAll(".plot")) observer.observe(place);
}
