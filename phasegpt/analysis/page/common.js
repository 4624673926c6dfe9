"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOUR = {
  coupled: "#2f5bea", others: "rgba(47, 91, 234, 0.22)", off: "#8a94a6", null: "#c2700c",
  band: "rgba(18, 128, 92, 0.10)", ink: "#1d2433", line: "#e3e7ee",
};
const CYCLE = ["#2f5bea", "#c0322b", "#12805c", "#c2700c", "#7c3aed", "#0e7490", "#be185d", "#4d7c0f"];

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

function rows(table, head, body, numeric = []) {
  const make = (tag, cells, attributes) => {
    const row = element("tr", null, attributes);
    cells.forEach((cell, i) => {
      const made = cell instanceof Node ? element(tag) : element(tag, cell);
      if (cell instanceof Node) made.append(cell);
      if (numeric.includes(i)) made.className = "number";
      row.append(made);
    });
    return row;
  };
  const top = element("thead");
  const rest = element("tbody");
  if (head) top.append(make("th", head, {}));
  body.forEach((cells) => rest.append(make("td", cells, {})));
  table.replaceChildren(top, rest);
}

function badge(status) { return element("span", status, { class: "badge " + status }); }
