"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOUR = { ...DATA.colours, others: DATA.colours.coupled + "38", line: "#e3e7ee" };
const CYCLE = COLOUR.cycle;

function $(id) { return document.getElementById(id); }

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

/* A packed array as {shape, at(i, j, ...)}, row-major. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.data), (c) => c.charCodeAt(0));
  let values = bytes;
  if (packed.bits === 16) {
    values = new Uint16Array(bytes.length / 2);
    for (let i = 0; i < values.length; i++) values[i] = bytes[2 * i] | (bytes[2 * i + 1] << 8);
  }
  const at = (...index) => {
    let place = 0;
    index.forEach((i, axis) => { place = place * packed.shape[axis] + i; });
    return values[place] * packed.step;
  };
  return { shape: packed.shape, at, values: () => Array.from(values, (v) => v * packed.step) };
}

function fixed(value, digits = 3) {
  return value === null || value === undefined ? "-" : value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1");
}

function signed(value, digits = 3) {
  const text = fixed(value, digits);
  return value > 0 && Number(text) !== 0 ? "+" + text : text;
}

function withInterval(e, digits = 3, show = signed) {
  if (e === null || e === undefined) return "-";
  const mean = show(e.mean, digits);
  return e.low === null ? mean : mean + " [" + show(e.low, digits) + ", " + show(e.high, digits) + "]";
}

function range(n) { return Array.from({ length: n }, (_, i) => i); }

function plot(id, traces, layout = {}) {
  const axis = {
    gridcolor: COLOUR.line, zerolinecolor: COLOUR.line, linecolor: "#b6bdca", automargin: true,
    ticks: "outside", ticklen: 3, tickcolor: "#b6bdca",
  };
  const merged = {
    margin: { l: 48, r: 12, t: 8, b: 40 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif", size: 12, color: COLOUR.ink },
    hoverlabel: { font: { size: 12 } },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11 } },
    ...layout,
    xaxis: { ...axis, ...(layout.xaxis || {}) },
    yaxis: { ...axis, ...(layout.yaxis || {}) },
  };
  Plotly.react(id, traces, merged, { displayModeBar: false, responsive: true });
}

function line(x, y, name, colour, extra = {}) {
  const { dash, width, ...rest } = extra;
  return {
    x, y, name, mode: "lines", type: "scatter",
    line: { color: colour, width: width || 1.5, dash: dash || "solid" }, ...rest,
  };
}

/* Curves of metrics.csv: [step, value] pairs. */
function curve(name, label, colour, extra = {}) {
  const points = (DATA.curves || {})[name];
  return points ? [line(points.map((p) => p[0]), points.map((p) => p[1]), label, colour, extra)] : [];
}

/* A table whose rows a click on a column's name sorts, a second click the other way. */
function rows(table, head, body, numeric = []) {
  const cellsOf = (tag, cells) => cells.map((cell, i) => {
    const made = cell instanceof Node ? element(tag) : element(tag, cell);
    if (cell instanceof Node) made.append(cell);
    if (numeric.includes(i)) made.className = "number";
    return made;
  });
  const top = element("thead");
  const rest = element("tbody");
  const lines = body.map((cells) => {
    const row = element("tr");
    row.append(...cellsOf("td", cells));
    return row;
  });
  if (head) {
    const row = element("tr");
    row.append(...cellsOf("th", head.map((name) => (name === "" ? name : element("button", name, { type: "button" })))));
    row.querySelectorAll("button").forEach((button) => button.addEventListener("click", () => sortBy(rest, button.parentElement)));
    top.append(row);
  }
  rest.append(...lines);
  table.replaceChildren(top, rest);
}

/* Numbers before words, what is empty last; an estimate counts by its first number. */
function sortBy(body, cell) {
  const column = [...cell.parentElement.children].indexOf(cell);
  const up = cell.getAttribute("aria-sort") !== "ascending";
  const key = (row) => {
    const text = row.children[column].textContent.trim();
    const number = parseFloat(text.replace(/,/g, ""));
    return Number.isNaN(number) ? [text === "" || text === "-" ? 2 : 1, text] : [0, number];
  };
  const compare = (a, b) => (a[0] !== b[0] ? a[0] - b[0] : (up ? 1 : -1) * (a[0] === 0 ? a[1] - b[1] : a[1].localeCompare(b[1])));
  const sorted = [...body.children].map((row) => [key(row), row]).sort(([a], [b]) => compare(a, b));
  body.replaceChildren(...sorted.map(([, row]) => row));
  [...cell.parentElement.children].forEach((other) => other.removeAttribute("aria-sort"));
  cell.setAttribute("aria-sort", up ? "ascending" : "descending");
}

function badge(status) { return element("span", status, { class: "badge " + status }); }
