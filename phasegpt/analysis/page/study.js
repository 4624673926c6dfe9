function table(id, [head, ...body]) {
  rows($(id), head, body, range(head.length).slice(1, -1));
}

/* A figure goes to the end of its section; a section without one is not there. */
function drawFigure(id) {
  const section = $(id);
  if (!DATA.figures[id]) { section.style.display = "none"; return; }
  const box = element("div", null, { class: "card scroll figure" });
  box.append(element("img", null, { src: DATA.figures[id], alt: section.querySelector("h2").textContent }));
  section.append(box);
}

$("title").textContent = DATA.name;
$("subtitle").textContent = DATA.arms + " arms, " + DATA.runs + " runs";
$("caption").textContent = DATA.caption + " A click on a column's name sorts by it.";
$("leaky-note").textContent = DATA.leaky_note;
$("footer").textContent = "PhaseGPT " + DATA.version;
if (DATA.attention) {
  const { baseline, phase, source, sequences, context } = DATA.attention;
  $("attention-note").textContent = baseline.name + " and " + phase.name + " on " + sequences + " x " + context + " tokens of " +
    source + ". Mean over heads, with the 95% interval over sequences: it is about the text, at fixed weights. " +
    "Heads of two models do not correspond. Maps are of the first sequence.";
}
if (DATA.tables[0].length) table("table", DATA.tables[0]);
if (DATA.tables[1].length) table("leaky-table", DATA.tables[1]);
for (const [name, text] of Object.entries(DATA.sources)) {
  const source = element("details");
  source.append(element("summary", name), element("pre", text));
  $("sources").append(source);
}
["forest", "curves", "phases", "histograms", "spread", "attention", "leaky"].forEach(drawFigure);
