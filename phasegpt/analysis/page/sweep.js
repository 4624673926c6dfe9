const RUNS = DATA.runs;
const LISTED = { ticks: "", type: "category" };  // a run may be called 0
const MEASURED = RUNS.filter((r) => r.layers.length);

function drawTable() {
  const keys = DATA.changed;
  const head = ["run", "arm", "status", "layer", "R", "K = 0", "dR [95%]", "PPC", "val/ppl", "loss [95%]", ...keys];
  const body = RUNS.flatMap((run) => {
    const name = () => (run.link ? element("a", run.name, { href: run.link }) : run.name);
    const rest = [
      fixed(run.ppl), withInterval(run.loss, 3, fixed),
      ...keys.map((k) => (k in run.values ? JSON.stringify(run.values[k]) : "")),
    ];
    if (!run.layers.length) return [[name(), run.label, run.reason, "", "", "", "", "", ...rest]];
    return run.layers.map((l) => [
      name(), run.label, badge(l.status), l.layer, fixed(l.R.mean), fixed(l.R_uncoupled), withInterval(l.dR),
      l.ppc ? fixed(l.ppc.mean) : "-", ...rest,
    ]);
  });
  rows($("runs"), head, body, [3, 4, 5, 6, 7, 8, 9]);
}

function drawOrder() {
  const all = MEASURED.flatMap((r) => r.layers.map((l) => ({
    ...l, label: r.label + (r.layers.length > 1 ? ", layer " + l.layer : ""),
  }))).reverse();
  const y = all.map((l) => l.label);
  const dot = (x, name, marker, extra = {}) => ({
    type: "scatter", mode: "markers", x, y, name, marker, hovertemplate: "%{y}: %{x:.3f}<extra>" + name + "</extra>", ...extra,
  });
  plot("order", [
    dot(all.map((l) => l.null.R), "random phases", { symbol: "line-ns-open", size: 12, color: COLOUR.null, line: { width: 2 } }),
    dot(all.map((l) => l.R_uncoupled), "K = 0", { symbol: "circle-open", size: 9, color: COLOUR.off, line: { width: 2 } }),
    dot(all.map((l) => l.R.mean), "as trained", { size: 10, color: COLOUR.coupled }),
  ], { xaxis: { title: { text: "R (phase_sync: prefix)" }, rangemode: "tozero" }, yaxis: LISTED });
}

function drawEffects() {
  const chosen = MEASURED.length ? MEASURED[0].interventions.map((e) => e.name)
    .filter((n) => n === "K x 0" || n.startsWith("scrambled")) : [];
  const runs = MEASURED.slice().reverse();
  plot("effects-plot", chosen.map((name, i) => {
    const found = runs.map((r) => r.interventions.find((e) => e.name === name).change);
    const arm = (end) => found.map((c) => (c.low === null ? 0 : Math.abs(c[end] - c.mean)));
    return {
      type: "scatter", mode: "markers", orientation: "h", name, x: found.map((c) => c.mean), y: runs.map((r) => r.label),
      marker: { color: CYCLE[i], size: 8 },
      error_x: { type: "data", symmetric: false, array: arm("high"), arrayminus: arm("low"), color: CYCLE[i], thickness: 1.4, width: 3 },
      hovertemplate: "%{y}: %{x:+.4f}<extra>" + name + "</extra>",
    };
  }), { xaxis: { title: { text: "nats per token" }, zerolinecolor: "#5b6577" }, yaxis: LISTED, scattermode: "group" });
}

function drawCurve(id, name, title) {
  const traces = RUNS.map((r, i) => [r, i]).filter(([r]) => r.curves[name]).map(([r, i]) =>
    line(r.curves[name].map((p) => p[0]), r.curves[name].map((p) => p[1]), r.label, CYCLE[i % CYCLE.length], {
      dash: ["solid", "dash", "dot"][Math.floor(i / CYCLE.length) % 3],
      mode: r.curves[name].length > 1 ? "lines" : "markers", hovertemplate: "%{y:.3f}<extra>" + r.label + "</extra>",
    }));
  plot(id, traces, {
    xaxis: { title: { text: "optimizer step" } }, yaxis: { title: { text: title } }, showlegend: RUNS.length <= 8,
  });
}

$("title").textContent = DATA.name;
$("subtitle").textContent = RUNS.length + " runs, " + MEASURED.length + " with oscillators";
$("runs-note").textContent = "val/ppl is the best of the training; loss is nats per token on the text measured here" +
  (DATA.sources.length === 1 ? " (" + DATA.sources[0] + ")" : "") +
  ". dR is R minus R with K = 0, the same weights and tokens. A run's name opens its own report, a column's name sorts.";
$("footer").textContent = "PhaseGPT " + DATA.version;
document.querySelectorAll(".tall").forEach((box) => { box.style.height = Math.max(280, 110 + 20 * MEASURED.reduce((n, r) => n + r.layers.length, 0)) + "px"; });
drawTable();
drawOrder();
drawEffects();
drawCurve("loss-curve", "val/loss", "nats per token");
drawCurve("R-curve", "phase/R/mean", "R");
