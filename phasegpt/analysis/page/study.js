const CAUSAL = DATA.arms.filter((a) => !a.leaky);
const LEAKY = DATA.arms.filter((a) => a.leaky);

function label(arm) { return arm.arm + " (n=" + arm.n + ")"; }

function table(id, [head, ...body]) {
  rows($(id), head, body, range(head.length).slice(1));
}

/* An arm's colour and dashes are its place among its like. */
function look(i) {
  return [CYCLE[i % CYCLE.length], ["solid", "dash", "dot", "dashdot"][Math.floor(i / CYCLE.length) % 4]];
}

function bandOfR(along) {
  const [low, high] = DATA.band;
  const ends = along === "y" ? { xref: "paper", x0: 0, x1: 1, y0: low, y1: high } : { yref: "paper", y0: 0, y1: 1, x0: low, x1: high };
  return [{ type: "rect", ...ends, fillcolor: COLOUR.band, line: { width: 0 }, layer: "below" }];
}

function hideCard(id) { $(id).parentElement.style.display = "none"; }

function drawIntervals(id, arms, name) {
  const shown = arms.filter((a) => a[name]).reverse();
  if (!shown.length) return hideCard(id);
  const found = shown.map((a) => a[name]);
  const arm = (end) => found.map((f) => (f.low === null ? 0 : Math.abs(f[end] - f.effect)));
  plot(id, [{
    type: "scatter", mode: "markers", x: found.map((f) => f.effect), y: shown.map(label),
    marker: { color: COLOUR.coupled, size: 8, symbol: "square" },
    error_x: { type: "data", symmetric: false, array: arm("high"), arrayminus: arm("low"), thickness: 1.4, width: 3 },
    hovertemplate: "%{y}: %{x:+.4f}<extra></extra>",
  }], { xaxis: { title: { text: "perplexity" }, zerolinecolor: "#5b6577", rangemode: "tozero" }, yaxis: { ticks: "" } });
}

function curves(arms, chosen) {
  return arms.flatMap((arm, i) => Object.entries(chosen(arm)).filter(([, c]) => c).flatMap(([name, c], k) => {
    const [colour, dash] = look(i);
    const group = { legendgroup: arm.arm };
    const edge = (y, extra) => line(c.steps, y, arm.arm, colour, { width: 0.01, showlegend: false, hoverinfo: "skip", ...group, ...extra });
    const text = "%{y:.3f}<extra>" + label(arm) + (name ? ", " + name : "") + "</extra>";
    return [
      edge(c.low, {}), edge(c.high, { fill: "tonexty", fillcolor: colour + "1c" }),
      line(c.steps, c.mean, label(arm), colour, { dash, hovertemplate: text, showlegend: k === 0, ...group }),
    ];
  }));
}

function drawCurves(id, traces, layout) {
  if (!traces.length) return hideCard(id);
  const xaxis = { title: { text: "optimizer step" } };
  plot(id, traces, { xaxis, legend: { font: { size: 10 }, orientation: "h", y: -0.3, yanchor: "top", x: 0 }, ...layout });
}

function drawBoxes(id, name) {
  const shown = CAUSAL.filter((a) => a.spread.length > 1).reverse();
  if (!shown.length) return hideCard(id);
  plot(id, shown.map((a) => ({
    type: "box", orientation: "h", x: a[name], name: label(a), boxpoints: "all", jitter: 0, pointpos: 0,
    marker: { color: COLOUR.coupled, size: 5 }, line: { color: COLOUR.off, width: 1 }, hovertemplate: "%{x:.4f}<extra>" + label(a) + "</extra>",
  })), { showlegend: false, yaxis: { ticks: "" } });
}

function drawHistograms() {
  const shown = CAUSAL.map((a, i) => [a, i]).filter(([a]) => a.histogram);
  if (!shown.length) return hideCard("histogram");
  plot("histogram", shown.map(([a, i]) => {
    const [colour, dash] = look(i);
    const x = range(a.histogram.length).map((k) => (k + 0.5) / a.histogram.length);
    return line(x, a.histogram, label(a), colour, { dash, line: { color: colour, shape: "hvh", dash } });
  }), { shapes: bandOfR("x"), xaxis: { title: { text: "R" }, range: [0, 1] }, yaxis: { rangemode: "tozero" }, legend: { font: { size: 10 }, y: -0.3, yanchor: "top", orientation: "h" } });
}

function drawScatter() {
  const shown = CAUSAL.map((a, i) => [a, i]).filter(([a]) => a.R.some((R) => R !== null));
  if (!shown.length) return hideCard("scatter");
  plot("scatter", shown.map(([a, i]) => ({
    type: "scatter", mode: "markers", x: a.R, y: a.ppl, name: label(a), marker: { color: look(i)[0], size: 7 },
    hovertemplate: "R %{x:.3f}, perplexity %{y:.3f}<extra>" + a.arm + "</extra>",
  })), { showlegend: false, xaxis: { title: { text: "R" } }, yaxis: { title: { text: "perplexity" } } });
}

function drawMeasure(id, layers, units) {
  const traces = ["baseline", "phase"].map((which, i) => {
    const found = layers.map((l) => l[id][which]);
    const arm = (end) => found.map((f) => (f.low === null ? 0 : Math.abs(f[end] - f.mean)));
    return {
      ...line(layers.map((l) => l.layer), found.map((f) => f.mean), DATA.attention[which].name, [COLOUR.off, COLOUR.coupled][i]),
      mode: "lines+markers", error_y: { type: "data", symmetric: false, array: arm("high"), arrayminus: arm("low"), thickness: 1, width: 2 },
    };
  });
  plot(id, traces, { xaxis: { title: { text: "layer" }, dtick: 1 }, yaxis: { title: { text: units } } });
}

function drawMaps(mapped) {
  const heads = range(mapped.maps.phase.shape[0]);
  const panels = heads.flatMap((h) => ["baseline", "phase"].map((which) => ({ h, which, id: "map-" + which + "-" + h })));
  panels.forEach(({ h, which, id }) => {
    const card = element("div", null, { class: "card" });
    card.append(element("h3", which + ", layer " + mapped.layer + ", head " + h), element("div", null, { id, class: "plot map" }));
    $("maps").append(card);
  });
  panels.forEach(({ h, which, id }) => {
    const A = unpack(mapped.maps[which]);
    const z = range(A.shape[1]).map((t) => range(t + 1).map((u) => Math.sqrt(A.at(h, t, u))));
    plot(id, [{
      type: "heatmap", z, zmin: 0, zmax: 1, colorscale: [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]], showscale: false,
      hovertemplate: "query %{y}, key %{x}: %{z:.2f}<extra></extra>",
    }], { yaxis: { autorange: "reversed", showgrid: false }, xaxis: { showgrid: false } });
  });
}

function drawAttention() {
  if (!DATA.attention) { $("attention").style.display = "none"; return; }
  const { layers, units, source, sequences, context } = DATA.attention;
  $("attention-note").textContent = DATA.attention.baseline.name + " and " + DATA.attention.phase.name + " on " + sequences + " x " + context +
    " tokens of " + source + ". Mean over heads, with the 95% interval over sequences: it is about the text, at fixed weights. " +
    "Heads of two models do not correspond. Maps show the square root of the weight on the first sequence.";
  drawMeasure("entropy", layers, units.entropy);
  drawMeasure("distance", layers, units.distance);
  const mapped = layers.find((l) => l.maps);
  if (mapped) drawMaps(mapped);
}

function drawLeaky() {
  if (!LEAKY.length) { $("leaky").style.display = "none"; return; }
  $("leaky-note").textContent = DATA.leaky_note;
  $("leaky-title").textContent = "What the leak buys: minus " + DATA.baseline;
  table("leaky-table", DATA.tables[1]);
  drawCurves("leaky-curve", curves(LEAKY, (a) => ({ "": a.curve })), { yaxis: { type: "log" } });
  drawIntervals("leaky-difference", LEAKY, "difference");
}

$("title").textContent = DATA.name;
$("subtitle").textContent = DATA.arms.length + " arms, " + DATA.arms.reduce((sum, a) => sum + a.seeds.length, 0) + " runs";
$("caption").textContent = DATA.caption;
$("difference-title").textContent = "From " + DATA.baseline;
$("footer").textContent = "PhaseGPT " + DATA.version;
document.querySelectorAll(".tall").forEach((box) => { box.style.height = Math.max(220, 90 + 24 * DATA.arms.length) + "px"; });
document.querySelectorAll(".curves").forEach((box) => { box.style.height = 320 + 9 * DATA.arms.length + "px"; });
if (CAUSAL.length) table("table", DATA.tables[0]);
for (const [name, text] of Object.entries(DATA.sources)) {
  const source = element("details");
  source.append(element("summary", name), element("pre", text));
  $("sources").append(source);
}
drawIntervals("difference", CAUSAL, "difference");
drawIntervals("off", CAUSAL, "off");
drawCurves("ppl-curve", curves(CAUSAL, (a) => ({ "": a.curve })), { yaxis: { type: "log" } });
drawCurves("R-curve", curves(CAUSAL, (a) => a.R_curves), { shapes: bandOfR("y"), yaxis: { range: [0, 1] } });
drawBoxes("spread", "spread");
drawBoxes("noise", "loss_sd");
drawHistograms();
drawScatter();
drawAttention();
drawLeaky();
window.dispatchEvent(new Event("resize"));  // where a card is not there, its neighbour is wider
