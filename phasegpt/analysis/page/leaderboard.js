const ARM = Object.fromEntries(DATA.arms.map((a) => [a.arm, a]));

/* A table whose headings sort it; a cell is [text, value], null values last. */
function sortedTable(id, head, body, order = { at: -1, up: false }) {
  const shown = body.slice();
  if (order.at >= 0) {
    const value = (row) => row[order.at][1];
    shown.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      const sign = typeof x === "string" ? x.localeCompare(y) : x - y;
      return order.up ? sign : -sign;
    });
  }
  rows($(id), head, shown.map((row) => row.map((cell) => cell[0])), range(head.length).slice(1));
  $(id).querySelectorAll("th").forEach((th, at) => {
    const button = element("button", th.textContent, { class: "sort", type: "button" });
    th.setAttribute("aria-sort", at !== order.at ? "none" : order.up ? "ascending" : "descending");
    button.onclick = () => sortedTable(id, head, body, { at, up: at === order.at ? !order.up : at === 0 });
    th.replaceChildren(button);
  });
}

function scoreText(column, cell) {
  if (!cell) return "";
  const lost = cell.lost ? " (" + cell.lost + " lost)" : "";
  if (column.groups) return cell.solved + " of " + cell.n + " solved" + lost;
  const ends = cell.low === null ? "" : " [" + fixed(cell.low) + ", " + fixed(cell.high) + "]";
  return fixed(cell.mean) + ends + ", " + cell.n + lost;
}

function difference(found) {
  if (!found) return ["", null];
  return [withInterval({ mean: found.effect, low: found.low, high: found.high }), found.effect];
}

function name(arm) { return [ARM[arm].name, ARM[arm].name]; }

function drawScores() {
  const shown = DATA.arms.filter((a) => $("offs").checked || !a.off);
  const costs = ["parameters", "flops", "time"];
  const head = ["arm", ...DATA.columns.map((c) => c.name), "parameters", "FLOPs", "time"];
  const body = shown.map((a) => [
    name(a.arm),
    ...DATA.columns.map((c) => [scoreText(c, c.cells[a.arm]), c.cells[a.arm] ? c.cells[a.arm].mean : null]),
    ...costs.map((k) => (k in a.costs ? [fixed(a.costs[k], 2), a.costs[k]] : ["", null])),
  ]);
  sortedTable("table", head, body);
}

function drawPoints(column) {
  const arms = DATA.arms.filter((a) => column.cells[a.arm]);
  const traces = arms.map((a) => ({
    type: "scatter", mode: "markers", showlegend: false,
    x: column.cells[a.arm].scores.map((s) => s[1]), y: column.cells[a.arm].scores.map(() => a.name),
    text: column.cells[a.arm].scores.map((s) => "seed " + s[0]),
    marker: { color: a.off ? "#ffffff" : a.colour, size: 8, line: { color: a.colour, width: 1.5 } },
    hovertemplate: "%{x:.4f}, %{text}<extra>" + a.name + "</extra>",
  }));
  const level = (x) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line: { color: "#5b6577", width: 1, dash: "dot" } });
  const shapes = [column.chance, column.ceiling].filter((x) => x !== null).map(level);
  $("points").style.height = 90 + 20 * arms.length + "px";
  plot("points", traces, {
    shapes, xaxis: { title: { text: column.higher ? "accuracy" : "bits per byte" } },
    yaxis: { ticks: "", autorange: "reversed", tickfont: { size: 10 } },
  });
}

/* One mechanism beside its off control and softmax. */
function drawLoads(column) {
  $("loads-card").style.display = Object.keys(column.loads).length ? "" : "none";
  const chosen = $("mechanism").value;
  const arms = DATA.arms.filter((a) => ["softmax", chosen, chosen + "_off"].includes(a.arm) && column.loads[a.arm]);
  if (!arms.length) return;
  plot("loads", arms.map((a) => {
    const points = column.loads[a.arm];
    return line(points.map((p) => p[0]), points.map((p) => p[1]), a.name, a.colour, {
      dash: a.off ? "dash" : "solid", hovertemplate: "%{x}: %{y:.3f}<extra>" + a.name + "</extra>",
    });
  }), {
    xaxis: { title: { text: "length or load" } }, yaxis: { title: { text: "accuracy" }, rangemode: "tozero" },
    showlegend: true,
  });
}

function drawCells(column) {
  const head = ["arm", "stage", "n", "mean", "sd", "median", "minus softmax + RoPE", "minus its off control", "p", "after Holm", "holds"];
  const value = (x, digits = 3) => (x === null || x === undefined ? ["", null] : [fixed(x, digits), x]);
  const body = DATA.arms.filter((a) => column.cells[a.arm]).map((a) => {
    const c = column.cells[a.arm];
    const word = c.standing || c.word || "";
    return [
      name(a.arm), [c.stage, c.stage], [String(c.n), c.n],
      column.groups ? [c.solved + " of " + c.n + " solved", c.solved / c.n] : value(c.mean),
      value(c.sd), value(c.median), difference(c.softmax), difference(c.off), value(c.p), value(c.holm), [word, word],
    ];
  });
  sortedTable("cells", head, body);
}

function drawTask() {
  const column = DATA.columns.find((c) => c.key === $("task").value);
  $("how").textContent = column.groups
    ? "Runs solve this or do not: " + column.groups + ". Runs are counted; there is no t-test."
    : "Differences are paired by seed, with 95% t intervals; p is the larger of the two.";
  drawPoints(column);
  drawLoads(column);
  drawCells(column);
}

function drawGaps() {
  let list = null;
  for (const line of DATA.gaps) {
    if (line.startsWith("## ")) {
      list = element("ul");
      $("gaps").append(element("h2", line.slice(3)), list);
    } else if (line.startsWith("- ")) list.append(element("li", line.slice(2)));
  }
}

$("title").textContent = "Leaderboard: where does coupling help?";
$("claim").append(element("strong", DATA.claim[0].replaceAll("**", "")));
DATA.claim.slice(1).forEach((text) => $("claims").append(element("li", text)));
$("footer").textContent = "PhaseGPT " + DATA.version + ", " + DATA.name;
DATA.columns.forEach((c) => $("task").append(element("option", c.name, { value: c.key })));
$("offs").onchange = drawScores;
DATA.arms.filter((a) => a.mechanism).forEach((a) => $("mechanism").append(element("option", a.name, { value: a.arm })));
$("task").onchange = $("mechanism").onchange = drawTask;
drawScores();
drawTask();
drawGaps();
