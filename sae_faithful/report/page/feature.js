// The page of one feature.
"use strict";

const LABELS = {
  "fake_features.rate_own": ["Fires on real text", percent],
  "fake_features.rate_random": ["Fires on random tokens", percent],
  "fake_features.rate_shuffled": ["Fires on shuffled text", percent],
  "shared_features.stability": ["Stability: other seeds that have it", percent],
  "shared_features.mean_matched_cosine": ["Matched cosine, mean", figures4],
};
const CROSS = "shared_features.cross_stability.";
const MATCH = "shared_features.match.seed";
const COSINE = "shared_features.matched_cosine.seed";

function showFeature(parts) {
  const [source, hook, variant, seed, latent] = parts;
  const article = document.getElementById("feature");
  const sae = featureData().saes.find((one) =>
    one.source === source && one.hook === hook && one.variant === variant && String(one.seed) === seed);
  const problem = sae ? refused(sae, latent) : "This page has no such SAE.";
  const back = make("p", { class: "steps" }, make("a", { href: "#features" }, "← All features"));
  if (problem) {
    article.replaceChildren(back, make("h1", { tabindex: "-1" }, "No such feature"), make("p", {}, problem));
    return "No such feature";
  }
  const number = Number(latent);
  const page = sae.pages[latent] ?? {};
  for (const [step, label] of [[-1, "← Previous index"], [1, "Next index →"]]) {
    if (refused(sae, String(number + step)) === null) back.append(make("a", { href: route(sae, number + step) }, label));
  }
  article.replaceChildren(...[back,
    make("h1", { tabindex: "-1" }, `Latent ${number}`),
    make("p", { class: "summary" }, make("bdi", {}, saeName(sae)), sae.baseline ? " (a baseline)" : "", " ",
      reasons(page).map((one) => make("span", { class: "why" }, one))),
    neuronpedia(sae, number), tiles(sae, number), matches(sae, number), contexts(page), promoted(sae, page),
    explanations(page), caseStudy(page), allColumns(sae, number)].filter(Boolean));
  return `Latent ${number}, ${saeName(sae)}`;
}

function neuronpedia(sae, latent) {
  if (!sae.neuronpedia) return null;
  const path = [...String(sae.neuronpedia).split("/"), latent].map(encodeURIComponent).join("/");
  const href = "https://www.neuronpedia.org/" + path;
  return make("p", {}, make("a", { href, rel: "noopener noreferrer", target: "_blank" }, "On Neuronpedia"), " (opens the network)");
}

function tiles(sae, latent) {
  const entries = Object.entries(LABELS).map(([name, [label, form]]) => [label, columnValue(sae, name, latent), form]);
  for (const name of Object.keys(sae.columns).filter((one) => one.startsWith(CROSS))) {
    entries.push([`SAEs on ${name.slice(CROSS.length)} that have it`, columnValue(sae, name, latent), percent]);
  }
  const known = entries.filter(([, value]) => value !== null);
  if (!known.length) {
    return make("p", { class: "hint" }, featureData().complete || sae.latents?.includes(latent)
      ? "No evaluator measured this latent." : "The numbers of this latent are in features.parquet.");
  }
  return make("dl", { class: "tiles" }, known.map(([label, value, form]) => make("div", {}, make("dt", {}, label), make("dd", {}, form(value)))));
}

function section(title, ...children) {
  return make("section", {}, make("h2", {}, title), ...children);
}

function matches(sae, latent) {
  const rows = [];
  for (const name of Object.keys(sae.columns).filter((one) => one.startsWith(MATCH))) {
    const match = columnValue(sae, name, latent);
    if (match === null) continue;
    const seed = Number(name.slice(MATCH.length));
    const other = featureData().saes.find((one) =>
      one.source === sae.source && one.hook === sae.hook && one.variant === sae.variant && one.seed === seed);
    const cosine = columnValue(sae, COSINE + seed, latent);
    const rate = other ? columnValue(other, "fake_features.rate_own", match) : null;
    rows.push([
      { show: String(seed), sort: seed },
      { show: other ? make("a", { href: route(other, match) }, `latent ${match}`) : `latent ${match}`, sort: match },
      { show: figures4(cosine), sort: cosine },
      { show: percent(rate), sort: rate },
    ]);
  }
  return rows.length ? section("Best match in every other seed",
    makeTable("Matches", ["Seed", "Match", "Cosine", "It fires on real text"], rows,
      "The latent of that seed's SAE that the one-to-one matching of decoder directions gave to this one, and their cosine.")) : null;
}

function contexts(page) {
  const children = [];
  if (page.contexts?.length) {
    const toggle = make("button", { type: "button", "aria-pressed": "false" }, "Show activations");
    const shown = make("div", {}, page.contexts.map((context) => contextLine(context, page.maximum ?? Math.max(...context.activations))));
    toggle.addEventListener("click", () => {
      const on = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(on));
      for (const token of shown.querySelectorAll(".token.on")) {
        token.querySelector("sub")?.remove();
        if (on) token.append(make("sub", {}, token.dataset.activation));
      }
    });
    children.push(make("p", { class: "hint" }, "Where it is most active in held-out text of its own source. The stronger the activation, the deeper the colour and the thicker the line; the strongest token is framed, its activation stands in front."),
      toggle, shown);
  }
  for (const [evaluator, places] of Object.entries(page.snippets ?? {})) {
    children.push(make("p", { class: "hint" }, `Shown by ${evaluator}: the strongest token is framed, its activation stands in front.`),
      ...places.map((place) => line(place.activation, [
        make("span", { class: "token" }, tokenText(place.before)),
        make("span", { class: "token on peak", style: "--a:1" }, tokenText(place.token)),
        make("span", { class: "token" }, tokenText(place.after))])));
  }
  return children.length ? section("Top contexts", ...children) : null;
}

function line(strength, tokens) {
  return make("div", { class: "context" }, make("span", { class: "strength" }, figures4(strength)),
    make("p", { class: "tokens", dir: "auto" }, tokens));
}

function contextLine(context, maximum) {
  const tokens = context.tokens.map((token, place) => {
    const activation = context.activations[place] ?? 0;
    const on = activation > 0;
    return make("span", {
      class: "token" + (on ? " on" : "") + (place === context.peak ? " peak" : ""),
      style: on ? `--a:${Math.min(1, activation / (maximum || 1)).toFixed(3)}` : null,
      title: on ? `activation ${figures4(activation)}` : null,
      "data-activation": on ? figures4(activation) : null,
    }, tokenText(token));
  });
  return line(context.activations[context.peak], tokens);
}

function tokenList(title, entries) {
  return make("div", {}, make("h3", {}, title), make("ul", { class: "token-list" }, entries.map(([token, value]) =>
    make("li", {}, make("bdi", {}, make("code", {}, shownToken(token))), make("span", { class: "number" }, figures4(value))))));
}

// A token alone: the spaces in front are part of it.
function shownToken(token) {
  return tokenText(token).replace(/^\s+/, (spaces) => "␣".repeat(spaces.length));
}

function promoted(sae, page) {
  if (!page.promoted?.length && !page.suppressed?.length) {
    return page.contexts && sae.no_direct_path ? section("What it writes", make("p", { class: "hint" }, sae.no_direct_path)) : null;
  }
  return section("What it writes", make("p", { class: "hint" }, "Its decoder direction through the unembedding: the tokens whose logits it raises and lowers most, directly."),
    make("div", { class: "columns" }, tokenList("Promoted tokens", page.promoted ?? []), tokenList("Suppressed tokens", page.suppressed ?? [])));
}

function explanations(page) {
  if (!page.explained) return null;
  const blocks = page.explained.map((one) => {
    const scores = Object.entries(one.scores ?? {}).map(([name, value]) =>
      `${name.replaceAll("_", " ")} ${value === null ? "– (" + (one.unscored?.[name] ?? "no score") + ")" : figures4(value)}`);
    return make("div", {}, make("h3", {}, one.metric + (one.by ? `, by ${one.by}` : "")),
      make("p", { dir: "auto", class: "tokens" }, one.explanation ?? "No explanation."), make("p", { class: "hint" }, scores.join("; ")));
  });
  return section("Explanation and score", ...blocks);
}

function caseStudy(page) {
  const study = page.case;
  if (!study) return null;
  const effects = (title, list) => (list?.length ? tokenList(title, list.slice(0, 5).map((one) => [one.token, one.effect ?? one.score])) : null);
  const top = study.top_token;
  const neuron = study.neuron;
  return section("Case study",
    make("p", {}, `Chosen for ${study.why}. Active on ${figures4(study.n_active)} tokens, ${figures4(study.maximum)} at most.`),
    top ? make("p", {}, `${percent(top.share_of_activation)} of its activation is on `, make("bdi", {}, make("code", {}, tokenText(top.token))), ".") : null,
    neuron ? make("p", {}, `The neuron most like it is ${neuron.index} (${figures4(neuron.similarity)}).`) : null,
    make("div", { class: "columns" }, effects("Ablated: these fall most", study.ablation?.suppressed), effects("Ablated: these rise most", study.ablation?.promoted ?? study.ablation?.raised)),
    study.tree_text?.length ? make("pre", { tabindex: "0", role: "region", "aria-label": "What it comes from" }, study.tree_text.join("\n")) : null);
}

function allColumns(sae, latent) {
  const rows = featureData().columns.map((name) => [name, columnValue(sae, name, latent)]).filter(([, value]) => value !== null)
    .map(([name, value]) => [name, { show: figures4(value), sort: value }]);
  return rows.length ? section("All numbers", makeTable("All numbers", ["Column", "Value"], rows,
    "Its columns of features.parquet, rounded to four figures; docs/evaluators/ of sae-faithful says what each is.")) : null;
}
