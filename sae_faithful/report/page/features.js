// Features: the list of chosen latents of an SAE, and the way to any latent by its index.
"use strict";

const featureData = once(() => jsonOf("features-data"));

const SHOWN = [
  ["fake_features.rate_own", "Fires on real text", percent],
  ["fake_features.rate_random", "On random tokens", percent],
  ["shared_features.stability", "Stability", figures4],
  ["shared_features.mean_matched_cosine", "Matched cosine", figures4],
];

function route(sae, latent) {
  return "#feature/" + [sae.source, sae.hook, sae.variant, sae.seed, latent].map(encodeURIComponent).join("/");
}

function saeName(sae) {
  return `${sae.source} · ${sae.hook} · ${sae.variant} · seed ${sae.seed}`;
}

// The value of a latent in a column; null where it has none.
function columnValue(sae, name, latent) {
  const column = sae.columns[name];
  if (!column) return null;
  const place = sae.latents ? sae.latents.indexOf(latent) : latent;
  if (Array.isArray(column)) return column[place] ?? null;
  const at = column.at.indexOf(place);
  return at < 0 ? null : column.values[at];
}

function reasons(page) {
  const why = [...(page.why ?? [])];
  if (page.explained) why.push("explained");
  if (page.case) why.push("case study");
  if (page.snippets?.fake_features && !why.includes("fakest")) why.push("fakest");
  return why.map((reason) => reason.replaceAll("_", " "));
}

// Where it is most active, in one line.
function peek(page) {
  const context = page.contexts?.[0];
  if (context) {
    const { tokens, peak } = context;
    const around = (from, to) => tokens.slice(Math.max(0, from), to).map(tokenText).join("");
    return peekLine(around(peak - 6, peak), tokenText(tokens[peak]), around(peak + 1, peak + 7));
  }
  const snippet = Object.values(page.snippets ?? {})[0]?.[0];
  return snippet ? peekLine(tokenText(snippet.before).slice(-40), tokenText(snippet.token), tokenText(snippet.after).slice(0, 40)) : "";
}

function peekLine(before, token, after) {
  return make("bdi", { class: "peek", dir: "auto" }, before.slice(-80), make("strong", {}, token.slice(0, 80)), after.slice(0, 80));
}

function listOf(sae, reason) {
  const columns = SHOWN.filter(([name]) => sae.columns[name]);
  const rows = Object.entries(sae.pages).map(([latent, page]) => [Number(latent), page, reasons(page)])
    .filter(([, , why]) => (reason === "" ? why.some((one) => one !== "match") : why.includes(reason)))
    .map(([latent, page, why]) => [
      { show: make("a", { href: route(sae, latent) }, String(latent)), sort: latent },
      { show: why.map((one) => make("span", { class: "why" }, one)), sort: why.join() },
      ...columns.map(([name, , form]) => {
        const value = columnValue(sae, name, latent);
        return { show: form(value), sort: value };
      }),
      { show: peek(page), sort: undefined },
    ]);
  if (!rows.length) return make("p", { class: "hint" }, noneChosen(sae));
  return makeTable(`Latents of ${saeName(sae)}`, ["Latent", "Why", ...columns.map(([, head]) => head), "Most active at"], rows);
}

function noneChosen(sae) {
  return Object.keys(sae.pages).length
    ? "No latent of this SAE was chosen for that reason."
    : "Nothing was written about single latents of this SAE: the evaluator top_contexts writes what they fire on. Their numbers can be opened by index.";
}

// Null, or why this SAE has no such latent.
function refused(sae, latent) {
  if (!/^\d+$/.test(latent)) return `“${latent}” is no index of a latent.`;
  if (sae.n !== null && Number(latent) >= sae.n) return `${saeName(sae)} has latents 0 to ${sae.n - 1}.`;
  return null;
}

function showFeatureLists() {
  const place = document.getElementById("feature-lists");
  if (!place) return;
  const data = featureData();
  const which = make("select", { id: "which-sae" }, data.saes.map((sae, number) => make("option", { value: number }, saeName(sae))));
  const why = make("select", { id: "which-reason" });
  const index = make("input", { id: "latent-index", inputmode: "numeric", autocomplete: "off", placeholder: "e.g. 12" });
  const error = make("p", { class: "error", role: "alert" });
  const list = make("div", { id: "latent-list" });
  const current = () => data.saes[Number(which.value)];
  const showList = () => list.replaceChildren(listOf(current(), why.value));
  const showReasons = () => {
    const all = new Set(Object.values(current().pages).flatMap(reasons));
    why.replaceChildren(make("option", { value: "" }, "all but matches"), ...[...all].map((one) => make("option", { value: one }, one)));
    showList();
  };
  which.addEventListener("change", showReasons);
  why.addEventListener("change", showList);
  const form = make("form", { class: "search" },
    make("label", {}, "SAE", which), make("label", {}, "Chosen as", why),
    make("label", {}, "Any latent, by index", index), make("button", { type: "submit" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const latent = index.value.trim();
    error.textContent = refused(current(), latent) ?? "";
    if (!error.textContent) location.hash = route(current(), Number(latent));
  });
  const size = data.saes.reduce((sum, sae) => sum + (sae.n ?? 0), 0);
  const hint = data.complete
    ? `Numbers of all ${size.toLocaleString("en-US")} latents are in this page; text only of those that an evaluator chose.`
    : `The run has ${size.toLocaleString("en-US")} latents, too many for one page: it holds those that an evaluator chose. All others are in features.parquet.`;
  place.replaceChildren(form, error, make("p", { class: "hint" }, hint), list);
  showReasons();
}
