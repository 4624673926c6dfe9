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
  if (cell.groups) return fixed(cell.mean) + ", " + cell.solved + " of " + cell.n + " solved" + lost;
  const ends = cell.low === null ? "" : " [" + fixed(cell.low) + ", " + fixed(cell.high) + "]";
  return fixed(cell.mean) + ends + ", " + cell.n + lost;
}

function difference(found) { return found ? [found.text, found.effect] : ["", null]; }

function name(arm) { return [ARM[arm].name, ARM[arm].name]; }

function drawScores() {
  const shown = DATA.arms.filter((a) => $("offs").checked || !a.off);
  const costs = { parameters: "parameters", flops: "FLOPs", state: "state", time: "time" };
  const head = ["arm", ...DATA.columns.map((c) => c.name + (c.stage ? " (" + c.stage + ")" : "")), ...Object.values(costs)];
  const body = shown.map((a) => [
    name(a.arm),
    ...DATA.columns.map((c) => [scoreText(c, c.cells[a.arm]), c.cells[a.arm] ? c.cells[a.arm].mean : null]),
    ...Object.keys(costs).map((k) => (k in a.costs ? [fixed(a.costs[k], 2), a.costs[k]] : ["", null])),
  ]);
  sortedTable("table", head, body);
}

/* Pictures that were drawn beside the page, those of them that there are. */
function drawPictures(id, named) {
  $(id).replaceChildren();
  for (const [name, title] of named.filter(([name]) => DATA.pictures[name])) {
    const card = element("div", null, { class: "card scroll picture" });
    card.append(element("img", null, { src: DATA.pictures[name], alt: title }));
    $(id).append(element("h3", title), card);
  }
}

function drawCells(table) {
  const head = ["arm", "n", "mean", "sd", "median", "every seed", "minus softmax + RoPE", "minus its off control", "p", "after Holm", "holds"];
  const value = (x, digits = 3) => (x === null || x === undefined ? ["", null] : [fixed(x, digits), x]);
  const body = DATA.arms.filter((a) => table.cells[a.arm]).map((a) => {
    const c = table.cells[a.arm];
    const word = c.standing || c.word || "";
    return [
      name(a.arm), [String(c.n), c.n],
      c.groups ? [fixed(c.mean) + ", " + c.solved + " of " + c.n + " solved", c.mean] : value(c.mean),
      value(c.sd), value(c.median), [c.scores.map((s) => fixed(s[1])).join(" "), null], difference(c.softmax), difference(c.off), value(c.p), value(c.holm), [word, word],
    ];
  });
  sortedTable("cells", head, body);
}

function drawTable() {
  const table = DATA.tables.find((t) => t.name === $("task").value);
  if (!table) return;
  $("how").textContent = table.how;
  drawCells(table);
  drawPictures("pictures", [[table.task + "_loads", "Accuracy by length or load"], [table.task + "_rates", "Score by learning rate"]]);
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
DATA.tables.forEach((t) => $("task").append(element("option", t.name)));
$("offs").onchange = drawScores;
$("task").onchange = drawTable;
drawPictures("scores", [["scores", "Every seed"]]);
drawScores();
drawTable();
drawGaps();
