const RUNS = DATA.runs;
const NAMES = RUNS.map((r) => r.name);
const MEASURED = RUNS.filter((r) => r.layers.length);

function drawTable() {
  const keys = DATA.changed;
  const head = ["run", "status", "layer", "R", "K = 0", "dR [95%]", "PPC", "val/ppl", "loss [95%]", ...keys];
  const body = RUNS.flatMap((run) => {
    const name = run.link ? element("a", run.name, { href: run.link }) : run.name;
    const rest = [
      fixed(run.ppl), withInterval(run.loss, 3, fixed),
      ...keys.map((k) => (k in run.values ? JSON.stringify(run.values[k]) : "")),
    ];
    if (!run.layers.length) return [[name, run.reason, "", "", "", "", "", ...rest]];
    return run.layers.map((l, i) => [
      i ? "" : name, badge(l.status), l.layer, fixed(l.R.mean), fixed(l.R_uncoupled), withInterval(l.dR),
      l.ppc ? fixed(l.ppc.mean) : "-", ...(i ? rest.map(() => "") : rest),
    ]);
  });
  rows($("runs"), head, body, [2, 3, 4, 5, 6, 7, 8]);
}

function drawOrder() {
  const all = MEASURED.flatMap((r) => r.layers.map((l) => ({
    ...l, label: r.name + (r.layers.length > 1 ? ", layer " + l.layer : ""),
  }))).reverse();
  const y = all.map((l) => l.label);
  const dot = (x, name, marker, extra = {}) => ({
    type: "scatter", mode: "markers", x, y, name, marker, hovertemplate: "%{y}: %{x:.3f}<extra>" + name + "</extra>", ...extra,
  });
  plot("order", [
    dot(all.map((l) => l.null.R), "random phases", { symbol: "line-ns-open", size: 12, color: COLOUR.null, line: { width: 2 } }),
    dot(all.map((l) => l.R_uncoupled), "K = 0", { symbol: "circle-open", size: 9, color: COLOUR.off, line: { width: 2 } }),
    dot(all.map((l) => l.R.mean), "as trained", { size: 10, color: COLOUR.coupled }),
  ], { xaxis: { title: { text: "R (phase_sync: prefix)" }, rangemode: "tozero" }, yaxis: { ticks: "" } });
}

function drawEffects() {
  const chosen = MEASURED.length ? MEASURED[0].interventions.map((e) => e.name)
    .filter((n) => n === "K x 0" || n.startsWith("scrambled")) : [];
  const runs = MEASURED.slice().reverse();
  plot("effects-plot", chosen.map((name, i) => {
    const found = runs.map((r) => r.interventions.find((e) => e.name === name).change);
    const arm = (end) => found.map((c) => (c.low === null ? 0 : Math.abs(c[end] - c.mean)));
    return {
      type: "scatter", mode: "markers", name, x: found.map((c) => c.mean), y: runs.map((r) => r.name),
      marker: { color: CYCLE[i], size: 8 },
      error_x: { type: "data", symmetric: false, array: arm("high"), arrayminus: arm("low"), color: CYCLE[i], thickness: 1.4, width: 3 },
      hovertemplate: "%{y}: %{x:+.4f}<extra>" + name + "</extra>",
    };
  }), { xaxis: { title: { text: "nats per token" }, zerolinecolor: "#5b6577" }, yaxis: { ticks: "" } });
}

function drawCurve(id, name, title) {
  const traces = RUNS.map((r, i) => [r, i]).filter(([r]) => r.curves[name]).map(([r, i]) =>
    line(r.curves[name].map((p) => p[0]), r.curves[name].map((p) => p[1]), r.name, CYCLE[i % CYCLE.length], {
      dash: ["solid", "dash", "dot"][Math.floor(i / CYCLE.length) % 3],
      hovertemplate: "%{y:.3f}<extra>" + r.name + "</extra>",
    }));
  plot(id, traces, {
    xaxis: { title: { text: "optimizer step" } }, yaxis: { title: { text: title } }, showlegend: RUNS.length <= 8,
  });
}

$("title").textContent = DATA.name;
$("subtitle").textContent = RUNS.length + " runs, " + MEASURED.length + " with oscillators";
$("runs-note").textContent = "val/ppl is the best of the training; loss is nats per token on the text measured here" +
  (DATA.sources.length === 1 ? " (" + DATA.sources[0] + ")" : "") +
  ". dR is R minus R with K = 0, the same weights and tokens. A name opens the run's own report.";
$("footer").textContent = "PhaseGPT " + DATA.version;
document.querySelectorAll(".tall").forEach((box) => { box.style.height = Math.max(280, 110 + 24 * MEASURED.length) + "px"; });
drawTable();
drawOrder();
drawEffects();
drawCurve("loss-curve", "val/loss", "nats per token");
drawCurve("R-curve", "phase/R/mean", "R");
