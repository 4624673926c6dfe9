const RUN = DATA.statistics;
const SHOWN = DATA.view;
const BAND = SHOWN.band;
const LAYERS = RUN.layers.map((statistics, i) => {
  const view = SHOWN.layers[i];
  const arrays = ["theta", "R", "R_uncoupled", "over_tokens", "over_tokens_uncoupled", "plv",
    "attention", "attention_plain"];
  const packed = Object.fromEntries(arrays.map((k) => [k, view[k] && unpack(view[k])]));
  return { ...view, ...packed, statistics };
});
const state = { layer: 0, head: 0, step: 0, pinned: 0, hovered: null, colour: "R", timer: null };

const layer = () => LAYERS[state.layer];
const token = () => (state.hovered === null ? state.pinned : state.hovered);
const statistics = () => layer().statistics.heads[state.head];

/* White space and breaks made visible. */
function visible(text) {
  return text.replace(/\r?\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/^ $/, "\u00b7");
}

function quoted(text) { return "\u201c" + visible(text) + "\u201d"; }

function ramp(share) {
  const x = Math.max(0, Math.min(1, share));
  const stops = [[247, 249, 253], [151, 178, 247], [47, 91, 234], [23, 37, 108]];
  const place = Math.min(2.999, x * 3);
  const [a, b] = [stops[Math.floor(place)], stops[Math.floor(place) + 1]];
  const mix = a.map((v, i) => Math.round(v + (b[i] - v) * (place % 1)));
  return { background: "rgb(" + mix.join(",") + ")", ink: x > 0.5 ? "#fff" : COLOUR.ink };
}

function drawHeader() {
  $("title").textContent = DATA.name;
  const first = RUN.layers[0];
  $("subtitle").textContent =
    first.attention + " in layer" + (RUN.layers.length > 1 ? "s " : " ") +
    RUN.layers.map((l) => l.layer).join(", ") + " \u00b7 " + first.heads.length + " heads of " +
    first.oscillators + " oscillators \u00b7 " + first.steps + " steps of " + first.dt +
    " \u00b7 measured on " + RUN.sequences + " \u00d7 " + RUN.context + " tokens of " + RUN.source +
    " \u00b7 loss " + fixed(RUN.loss.mean) + " nats per " + RUN.unit;
  $("status-note").textContent = [...new Set(RUN.layers.map((l) => l.rule))]
    .map((rule) => rule[0].toUpperCase() + rule.slice(1) + ".").join(" ");
  $("footer").textContent = "PhaseGPT " + DATA.version + " \u00b7 " + RUN.checkpoint + " \u00b7 sha256 " + RUN.sha256;
}

function drawLayers() {
  $("layers").replaceChildren(...LAYERS.map((l, i) => {
    const s = l.statistics;
    const card = element("button", null, { class: "card layer", type: "button", "aria-pressed": i === state.layer });
    const title = element("div", null, { class: "title" });
    title.append(element("strong", "Layer " + s.layer), badge(s.status));
    const size = element("div", (l.over_prefix ? "prefix R " : "R ") + fixed(s.R.mean), { class: "big" });
    const against = "K = 0: " + fixed(s.R_uncoupled) + " \u00b7 random phases: " + fixed(s.null.R);
    card.append(title, size, element("div", against, { class: "note" }), element("div", s.reason));
    card.addEventListener("click", () => { state.layer = i; changedLayer(); });
    return card;
  }));
}

function drawControls() {
  const option = (value, text) => element("option", text, { value });
  $("layer").replaceChildren(...LAYERS.map((l, i) => option(i, l.statistics.layer)));
  $("layer").value = state.layer;
  $("head").replaceChildren(...layer().statistics.heads.map((h) => option(h.head, h.head)));
  $("head").value = state.head;
  $("step").max = layer().steps.length - 1;
  $("step").value = state.step;
}

function drawStepLabel() {
  const s = layer().steps[state.step];
  $("step-label").textContent = s + " of " + layer().statistics.steps + ", time " + fixed(s * layer().dt, 2);
}

function drawTokens() {
  const byLoss = state.colour === "loss";
  const top = byLoss ? Math.max(...SHOWN.loss) : 1;
  const value = (t) => (byLoss ? SHOWN.loss[t] : layer().R.at(state.step, t, state.head));
  const box = $("tokens");
  if (!box.childElementCount) {
    SHOWN.loss.forEach((_, t) => {
      const span = element("span", visible(SHOWN.tokens[t]), { role: "option" });
      if (/^\s+$/.test(SHOWN.tokens[t])) span.className = "mark";
      span.addEventListener("mouseenter", () => { state.hovered = t; drawToken(); });
      span.addEventListener("mouseleave", () => { state.hovered = null; drawToken(); });
      span.addEventListener("click", () => pin(t));
      box.append(span);
      if (SHOWN.tokens[t].endsWith("\n")) box.append(element("br"));
    });
  }
  [...box.querySelectorAll("span")].forEach((span, t) => {
    const paint = ramp(value(t) / top);
    span.style.background = paint.background;
    span.style.color = paint.ink;
    span.classList.toggle("pinned", t === state.pinned);
    span.setAttribute("aria-selected", t === state.pinned);
  });
  const shades = range(9).map((i) => ramp(i / 8).background).join(",");
  $("ramp").style.background = "linear-gradient(90deg," + shades + ")";
  $("ramp-low").textContent = "0";
  $("ramp-high").textContent = byLoss ? fixed(top, 1) + " nats" : "1";
}

function pin(t) {
  state.pinned = Math.max(0, Math.min(SHOWN.loss.length - 1, t));
  state.hovered = null;
  drawTokens();
  drawToken();
}

function drawToken() {
  const l = layer(), t = token(), h = state.head, N = l.statistics.oscillators;
  const angles = range(N).map((n) => l.theta.at(state.step, t, h, n));
  const R = l.R.at(state.step, t, h);
  const circle = (r, colour, dash) => ({
    type: "circle", x0: -r, y0: -r, x1: r, y1: r, line: { color: colour, width: 1.2, dash: dash || "solid" },
  });
  const dots = {
    type: "scatter", mode: "markers", x: angles.map(Math.cos), y: angles.map(Math.sin),
    marker: { size: 10, color: COLOUR.coupled, opacity: 0.75, line: { color: "#fff", width: 1 } },
    text: angles.map((a, n) => "oscillator " + n + ": " + Math.round((a * 180) / Math.PI) + "\u00b0"),
    hovertemplate: "%{text}<extra></extra>",
  };
  const traces = [];
  const annotations = [];
  if (!l.over_prefix) {
    const mean = (f) => angles.reduce((sum, a) => sum + f(a), 0) / N;
    annotations.push({
      x: mean(Math.cos), y: mean(Math.sin), ax: 0, ay: 0, xref: "x", yref: "y", axref: "x", ayref: "y",
      text: "", showarrow: true, arrowhead: 2, arrowwidth: 2.5, arrowcolor: COLOUR.ink,
    });
  } else {
    const z = range(N).map((n) => {
      const weights = range(t + 1).map((u) => (l.forget ? l.forget[h][n] ** (t - u) : 1));
      const whole = weights.reduce((sum, w) => sum + w, 0);
      return [Math.cos, Math.sin].map((f) =>
        weights.reduce((sum, w, u) => sum + w * f(l.theta.at(state.step, u, h, n)), 0) / whole);
    });
    const ties = { x: [], y: [] };
    z.forEach(([x, y], n) => {
      ties.x.push(x, Math.cos(angles[n]), null);
      ties.y.push(y, Math.sin(angles[n]), null);
    });
    traces.push({ ...line(ties.x, ties.y, "", "rgba(138,148,166,0.45)", { width: 1 }), hoverinfo: "skip" });
    traces.push({
      type: "scatter", mode: "markers", x: z.map((p) => p[0]), y: z.map((p) => p[1]),
      marker: { size: 7, color: "#fff", line: { color: COLOUR.ink, width: 1.3 } },
      text: z.map((p, n) => "prefix of oscillator " + n + ": R " + fixed(Math.hypot(...p))),
      hovertemplate: "%{text}<extra></extra>",
    });
  }
  const axis = { visible: false, range: [-1.14, 1.14], fixedrange: true };
  plot("portrait", [...traces, dots], {
    margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, xaxis: axis,
    yaxis: { ...axis, scaleanchor: "x" },
    annotations, shapes: [circle(1, "#b6bdca"), circle(Math.min(1, l.null_T[t]), COLOUR.null, "dot")],
  });
  const facts = [
    ["token " + (t + 1), quoted(SHOWN.tokens[t])],
    [l.over_prefix ? "mean prefix R" : "R at this step", fixed(R)],
    ["after the last step, K = 0", fixed(l.R_uncoupled.at(t, h))],
    ["random phases", fixed(l.null_T[t])],
    ["next token", quoted(SHOWN.tokens[t + 1])],
    ["its loss", fixed(SHOWN.loss[t], 2) + " nats"],
  ];
  $("token-info").replaceChildren(...facts.map(([name, value]) => {
    const fact = element("div");
    fact.append(element("dt", name), element("dd", value));
    return fact;
  }));
  drawTokenSteps();
}

/* The token's own R at every step of the integration. */
function drawTokenSteps() {
  const l = layer(), t = token(), h = state.head;
  const R = l.steps.map((_, i) => l.R.at(i, t, h));
  plot("token-steps", [
    line(l.steps, l.steps.map(() => l.null_T[t]), "random phases", COLOUR.null, { dash: "dash", hoverinfo: "skip" }),
    line(l.steps, R, "R", COLOUR.coupled, { width: 2.2, hovertemplate: "step %{x}: %{y:.3f}<extra></extra>" }),
    { x: [l.steps[state.step]], y: [R[state.step]], type: "scatter", mode: "markers", marker: { color: COLOUR.coupled, size: 9 }, hoverinfo: "skip" },
  ], {
    showlegend: false, margin: { l: 44, r: 8, t: 6, b: 34 }, shapes: bandShape(),
    xaxis: { title: { text: "integration step", standoff: 4 } }, yaxis: { title: { text: "R" }, range: [0, 1], nticks: 4 },
  });
}

function bandShape() {
  return layer().over_prefix
    ? []
    : [{ type: "rect", xref: "paper", x0: 0, x1: 1, y0: BAND[0], y1: BAND[1], fillcolor: COLOUR.band, line: { width: 0 }, layer: "below" }];
}

/* Every head's line, the chosen one on top, beside K = 0 and random phases. */
function lines(x, coupled, uncoupled, nothing) {
  const heads = range(layer().statistics.heads.length);
  const others = heads.filter((h) => h !== state.head).map((h, i) =>
    line(x, coupled(h), "other heads", COLOUR.others, {
      width: 1.2, legendgroup: "others", showlegend: i === 0, hovertemplate: "head " + h + ": %{y:.3f}<extra></extra>",
    }));
  const same = { hovertemplate: "%{fullData.name}: %{y:.3f}<extra></extra>" };
  return [
    ...others,
    line(x, nothing, "random phases", COLOUR.null, { dash: "dash", ...same }),
    line(x, uncoupled(state.head), "K = 0", COLOUR.off, { width: 2, dash: "dot", ...same }),
    line(x, coupled(state.head), "head " + state.head, COLOUR.coupled, { width: 2.6, ...same }),
  ];
}

/* Upper end of an R axis: the whole band in view, never above 1. */
function upperEnd(values) { return Math.min(1, Math.max(0.65, 1.15 * Math.max(...values))); }

function drawOrder() {
  const l = layer(), s = l.statistics;
  const every = range(s.steps + 1);
  const now = l.steps[state.step];
  const marker = {
    x: [now], y: [l.over_steps[state.head][now]], type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip",
    marker: { color: COLOUR.coupled, size: 10, line: { color: "#fff", width: 1.5 } },
  };
  const y = { title: { text: "R" }, range: [0, upperEnd([l.over_steps, l.over_steps_uncoupled].flat(2))] };
  plot("over-steps", [...lines(every, (h) => l.over_steps[h], (h) => l.over_steps_uncoupled[h], every.map(() => s.null.R)), marker], {
    hovermode: "x", shapes: bandShape(), yaxis: y, xaxis: { title: { text: "integration step" } },
  });
  $("steps-note").textContent = l.over_prefix
    ? "R is the agreement of a channel over its prefix, mean over channels and tokens from " + s.from_token + " on."
    : "R is the agreement of the oscillators of a head in one token, mean over all tokens. Shaded: the working band " + BAND.join(" to ") + ".";
}

function drawPositions() {
  const l = layer();
  const T = l.over_tokens.shape[1];
  const x = range(T).map((t) => t + 1);
  const along = (array) => (h) => range(T).map((t) => array.at(h, t));
  plot("over-tokens", lines(x, along(l.over_tokens), along(l.over_tokens_uncoupled), l.null_T), {
    hovermode: "x", shapes: bandShape(), xaxis: { title: { text: "token" } },
    yaxis: { title: { text: "R" }, range: [0, upperEnd(l.over_tokens.values())] },
  });
  $("positions-note").textContent = "Mean over " + RUN.sequences + (RUN.sequences > 1 ? " sequences." : " sequence.") +
    (l.over_prefix ? " Short prefixes agree by chance, as random phases do." : "");
}

function drawDaido() {
  const l = layer();
  const x = ["R\u2081", "R\u2082", "R\u2083", "R\u2084"];
  const bar = (y, name, colour) => ({ type: "bar", x, y, name, marker: { color: colour }, hovertemplate: name + ": %{y:.3f}<extra></extra>" });
  plot("daido", [
    bar(l.daido[state.head], "head " + state.head, COLOUR.coupled),
    bar(l.daido_uncoupled[state.head], "K = 0", "#c9cfda"),
    line(x, x.map(() => l.daido_null), "random phases", COLOUR.null, { dash: "dash" }),
  ], { barmode: "group", bargap: 0.35, yaxis: { rangemode: "tozero" } });
  $("daido-note").textContent = "R of m times the phases" +
    (l.over_prefix ? ", over the tokens of a sequence" : "") +
    ". A second harmonic above the first means two groups in antiphase.";
}

const SCALE = [[0, "#f7f9fd"], [0.05, "#dbe4fc"], [0.2, "#97b2f7"], [0.5, "#2f5bea"], [1, "#17256c"]];
const CHANGE = [[0, "#b3261e"], [0.25, "#efa39d"], [0.5, "#fafafa"], [0.75, "#97b2f7"], [1, "#2f5bea"]];

function map(id, z, text, options) {
  const axis = { showgrid: false, zeroline: false, showticklabels: false, ticks: "", constrain: "domain", fixedrange: true };
  plot(id, [{
    type: "heatmap", z, text, hoverongaps: false, hovertemplate: "%{text}: %{z:.3f}<extra></extra>",
    colorbar: { thickness: 9, len: 0.9, outlinewidth: 0, tickfont: { size: 10 } }, ...options,
  }], {
    margin: { l: 34, r: 4, t: 4, b: 30 },
    xaxis: { ...axis, title: { text: options.horizontal, standoff: 4 } },
    yaxis: { ...axis, title: { text: options.vertical, standoff: 4 }, autorange: "reversed", scaleanchor: "x" },
  });
}

function drawPlv() {
  const l = layer(), order = l.plv_order[state.head];
  const cluster = l.plv_clusters[state.head];
  const z = order.map((i) => order.map((j) => l.plv.at(state.head, i, j)));
  const text = order.map((i) => order.map((j) => "oscillators " + i + " and " + j + (cluster[i] === cluster[j] && i !== j ? ", one cluster" : "")));
  map("plv", z, text, { colorscale: SCALE.map(([at, c], i) => [i / 4, c]), zmin: 0, zmax: 1, horizontal: "oscillator, sorted by cluster", vertical: "oscillator" });
  const count = statistics().plv_clusters;
  $("plv-note").textContent = "PLV: do two oscillators keep their phase difference from token to token? " +
    count + (count === 1 ? " cluster" : " clusters") + " of " + cluster.length + " oscillators above " +
    fixed(l.statistics.null.plv_threshold, 2) + ". Together they move like " +
    fixed(statistics().plv_effective, 1) + " independent oscillators.";
}

function drawAttention() {
  const l = layer(), h = state.head;
  document.querySelectorAll(".attention").forEach((card) => { card.hidden = !l.attention; });
  if (!l.attention) {
    const mechanism = l.statistics.mechanism;
    $("attention-note").textContent = (mechanism === "phase_sync"
      ? "phase_sync has no attention map: every token of the prefix pulls alike (or forgets)."
      : "The attention of " + mechanism + " is not shown.") + " Below, how far the phases of two tokens agree.";
    return;
  }
  const M = l.attention.shape[1];
  const cell = (f) => range(M).map((t) => range(M).map((u) => (u > t ? null : f(t, u))));
  const text = pairs(M, "looks at");
  const a = (t, u) => l.attention.at(h, t, u), b = (t, u) => l.attention_plain.at(h, t, u);
  const shades = { colorscale: SCALE, zmin: 0, zmax: 1, horizontal: "key", vertical: "query" };
  map("attention", cell(a), text, shades);
  map("attention-plain", cell(b), text, shades);
  map("attention-change", cell((t, u) => a(t, u) - b(t, u)), text, { ...shades, colorscale: CHANGE, zmin: -1, zmax: 1 });
  const m = statistics().attention;
  $("attention-note").textContent = "The coherence term moves " + fixed(100 * m.moved, 0) + "% of the attention of head " + h +
    ". With it, entropy (of the most possible) is " + fixed(m.entropy, 2) + " instead of " + fixed(m.entropy_plain, 2) +
    ", the mean distance " + fixed(m.distance, 1) + " tokens instead of " + fixed(m.distance_plain, 1) +
    ", and " + fixed(100 * m.own, 0) + "% goes to the token itself, whose coherence is always 1, instead of " + fixed(100 * m.own_plain, 0) +
    "%. The other tokens that it attends to agree with it in phase by " + fixed(m.coherence, 2) + " (by chance: " + fixed(m.coherence_shuffled, 2) + ").";
}

function pairs(M, verb) {
  return range(M).map((t) => range(M).map((u) =>
    (t + 1) + " " + quoted(SHOWN.tokens[t]) + " " + verb + " " + (u + 1) + " " + quoted(SHOWN.tokens[u])));
}

function drawCoherence() {
  const l = layer(), N = l.statistics.oscillators, M = Math.min(64, SHOWN.loss.length);
  const phases = range(M).map((t) => range(N).map((n) => l.theta.at(state.step, t, state.head, n)));
  const waves = phases.map((row) => [...row.map(Math.cos), ...row.map(Math.sin)]);
  const z = waves.map((a) => waves.map((b) => a.reduce((sum, v, i) => sum + v * b[i], 0) / N));
  map("coherence", z, pairs(M, "and"), { colorscale: CHANGE, zmin: -1, zmax: 1, horizontal: "token", vertical: "token" });
}

function drawScatter() {
  const l = layer();
  const { loss, coherence } = l.scatter;
  plot("scatter", [{
    type: "scatter", mode: "markers", x: coherence[state.head], y: loss,
    marker: { size: 6, color: COLOUR.coupled, opacity: 0.45 },
    hovertemplate: "coherence %{x:.2f}, loss %{y:.2f}<extra></extra>",
  }], {
    xaxis: { title: { text: l.over_prefix ? "prefix R" : "coherence with attended tokens" } },
    yaxis: { title: { text: "loss, nats" }, rangemode: "tozero" },
  });
  const found = statistics().loss_correlation;
  const c = found.coherence || found.R;
  $("scatter-note").textContent = c
    ? "Within a sequence, r = " + withInterval({ mean: c.r, low: c.low, high: c.high }, 2) + " (n = " + c.n + ")" +
      (c.r_at_position === null ? "." : "; at one position of different sequences, r = " + signed(c.r_at_position, 2) + ". Both change along a text, so trust the second.")
    : "Too few tokens for a correlation.";
}

function drawEffects() {
  const effects = RUN.interventions;
  $("effects-card").hidden = !effects;
  if (!effects) return;
  const shown = effects.slice().reverse();
  const x = shown.map((e) => e.change.mean);
  const arm = (end) => shown.map((e) => (e.change.low === null ? 0 : Math.abs(e.change[end] - e.change.mean)));
  plot("effects-plot", [{
    type: "scatter", mode: "markers", x, y: shown.map((e) => e.name),
    error_x: { type: "data", symmetric: false, array: arm("high"), arrayminus: arm("low"), color: COLOUR.coupled, thickness: 1.6, width: 4 },
    marker: { color: COLOUR.coupled, size: 8 }, hovertemplate: "%{y}: %{x:+.4f}<extra></extra>",
  }], { xaxis: { title: { text: "nats per " + RUN.unit }, zerolinecolor: "#5b6577" }, yaxis: { ticks: "" } });
  const per = effects[0].change.per;
  $("effects-note").textContent = "All layers shown together, the weights as trained; 95% intervals over " + effects[0].change.n + " " +
    (per === "sequence" ? "sequences, paired." : "tokens of one sequence, which are not independent: too narrow.") + " Above 0: worse.";
  rows($("effects"), ["change", "loss", "difference [95%]", "n"], effects.map((e) =>
    [e.name, fixed(e.loss, 4), withInterval(e.change, 4), String(e.change.n)]), [1, 2, 3]);
}

function drawStatistics() {
  const h = statistics(), all = layer().statistics, k = !layer().over_prefix;
  const both = (name, show, text) => [name, show(h), show(all), text];
  const one = (name, value, text) => [name, value, "", text];
  const where = k ? "tokens" : "channels and tokens";
  const list = [
    ["status", badge(h.status), badge(all.status), h.reason],
    both("R", (s) => fixed(s.R.mean) + " \u00b1 " + fixed(s.R.sd), "Mean and standard deviation over " + where + "; random phases give " + fixed(all.null.R) + "."),
    both("R, range", (s) => fixed(s.R.min) + " to " + fixed(s.R.max), "Smallest and largest R of a token."),
    both("dR", (s) => withInterval(s.dR), "R minus R with K = 0, the same weights and tokens: what coupling adds, with its 95% interval."),
    both("PPC", (s) => withInterval(s.ppc, 3, fixed), "R\u00b2 without the part that chance gives: 0 for random phases, 1 in full agreement."),
    one("participation ratio", fixed(h.participation, 1), "Directions in which the phases still tell tokens apart, of at most " + 2 * all.oscillators + "."),
    one("offset spread", fixed(h.offsets, 2) + " rad", "Spread of the oscillators' constant offsets" + (k ? "; these move R without changing attention." : "; these change neither prefix R nor coupling.")),
    one("independent oscillators", fixed(h.plv_effective, 1), "As many of the " + all.oscillators + " as move on their own from token to token."),
    one("K", fixed(h.coupling), "Coupling of this head."),
    one("K S dt", fixed(h.budget), "Coupling times integration time: how far coupling can act."),
  ];
  if (k) list.splice(3, 0, both("in the band", (s) => fixed(100 * s.R.in_band, 0) + "%", "Tokens with R from " + BAND.join(" to ") + "."));
  rows($("statistics"), ["", "head " + state.head, "layer " + all.layer, "what it says"], list);
  $("statistics").querySelectorAll("tbody tr").forEach((row) => { row.lastChild.className = "explain"; });
}

function drawTraining() {
  const names = Object.keys(DATA.curves);
  $("training").hidden = names.length === 0;
  $("training-note").textContent = names.length ? "" : "There is no metrics.csv beside this checkpoint.";
  if (!names.length) return;
  const x = { title: { text: "optimizer step" }, rangemode: "tozero" };
  plot("loss-curve", [...curve("train/loss", "train", "rgba(138,148,166,0.8)", { width: 1.2 }),
    ...curve("val/loss", "validation", COLOUR.coupled, { mode: "lines+markers" })],
  { xaxis: x, yaxis: { title: { text: "nats per " + RUN.unit } } });
  const order = LAYERS.flatMap((l, i) => curve("phase/R/layer" + l.statistics.layer, "layer " + l.statistics.layer, CYCLE[i % CYCLE.length], { width: 2 }));
  plot("R-curve", order, { xaxis: x, yaxis: { title: { text: "R" }, rangemode: "tozero" }, showlegend: true });
}

function flat(value, prefix) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[prefix, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([k, v]) => flat(v, prefix ? prefix + "." + k : k));
}

function drawRun() {
  const pairs = DATA.config ? flat(DATA.config, "") : [["not known", "no run.json beside this checkpoint"]];
  $("configuration").replaceChildren(...pairs.map(([name, value]) => {
    const pair = element("div");
    pair.append(element("dt", name), element("dd", value));
    return pair;
  }));
  $("record").textContent = JSON.stringify(DATA.record, null, 2);
}

function changedStep() { drawStepLabel(); drawTokens(); drawToken(); drawOrder(); drawCoherence(); }

function changedHead() {
  changedStep(); drawPositions(); drawDaido(); drawPlv(); drawStatistics(); drawAttention(); drawScatter();
}

function changedLayer() {
  state.head = Math.min(state.head, layer().statistics.heads.length - 1);
  state.step = layer().steps.length - 1;
  $("portrait-note").textContent = layer().over_prefix
    ? "Each dot is a channel of the head, tied to the mean of its prefix, which R is of. Dotted: what random phases would give."
    : "Each dot is an oscillator of the head. The arrow is their mean, of length R; dotted, what random phases would give.";
  drawLayers(); drawControls(); changedHead();
}

function stop() {
  clearInterval(state.timer);
  state.timer = null;
  $("play").textContent = "Play";
}

function play() {
  if (state.timer) return stop();
  if (state.step >= layer().steps.length - 1) state.step = -1;
  $("play").textContent = "Stop";
  state.timer = setInterval(() => {
    state.step += 1;
    $("step").value = state.step;
    changedStep();
    if (state.step >= layer().steps.length - 1) stop();
  }, 250);
}

$("layer").addEventListener("change", (e) => { stop(); state.layer = Number(e.target.value); changedLayer(); });
$("head").addEventListener("change", (e) => { state.head = Number(e.target.value); changedHead(); });
$("step").addEventListener("input", (e) => { stop(); state.step = Number(e.target.value); changedStep(); });
$("colour").addEventListener("change", (e) => { state.colour = e.target.value; drawTokens(); });
$("play").addEventListener("click", play);
$("tokens").addEventListener("keydown", (e) => {
  const move = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
  if (move) { e.preventDefault(); pin(state.pinned + move); }
});

state.pinned = Math.floor(SHOWN.loss.length / 2);
drawHeader();
changedLayer();
drawEffects();
drawTraining();
drawRun();
