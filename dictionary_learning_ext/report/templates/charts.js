const LIGHT = {
  fg: "#1b1f24", muted: "#59636e", grid: "#e3e7eb", series: ["#0072B2", "#D55E00", "#009E73", "#AA4A86", "#B87F00", "#3A93C9"],
};
const DARK = {
  fg: "#e8eaed", muted: "#a3acb6", grid: "#363d45", series: ["#56B4E9", "#F0803C", "#2FC49A", "#E09CC6", "#E69F00", "#9AD1F2"],
};
const DASHES = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
/** The line of an SAE: no two of the first 36 have one colour and one dash. */
const series = (t, { place }) => ({ color: t.series[place % 6], dash: DASHES[(place + Math.floor(place / 6)) % 6] });

const darkScheme = matchMedia("(prefers-color-scheme: dark)");
const isTouch = matchMedia("(pointer: coarse)").matches;
let printing = false;
const theme = () => (darkScheme.matches && !printing ? DARK : LIGHT);

/** Charts by their element; each is drawn when it comes near the screen, or is printed. */
const charts = new Map();

function addChart(parent, title, explanation, make) {
  const plot = el("div", { class: "plot", role: "img", "aria-label": title + ". " + explanation });
  const caption = el("figcaption", {}, title, el("br"), el("small", {}, explanation));
  parent.append(el("figure", { class: "chart" }, caption, plot));
  charts.set(plot, { title, make, drawn: false });
  return plot;
}

async function draw(plot) {
  const chart = charts.get(plot);
  const { data, layout } = chart.make(theme());
  const t = theme();
  const lines = { gridcolor: t.grid, zerolinecolor: t.grid, linecolor: t.muted, automargin: true };
  const axis = ({ title = "", ...own } = {}) => ({ ...lines, ...own, title: { text: title, font: { size: 12 } } });
  const full = {
    margin: { l: 45, r: 10, t: 10, b: 35 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: t.fg, family: "system-ui, sans-serif", size: 12 }, showlegend: false, hovermode: "closest",
    dragmode: isTouch ? false : "zoom",
    modebar: { bgcolor: "rgba(0,0,0,0)", color: t.muted, activecolor: t.fg }, ...layout,
    xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis),
  };
  await Plotly.react(plot, data, full, {
    responsive: true, displaylogo: false, displayModeBar: "hover", scrollZoom: false,
    modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg", filename: chart.title.split("\n")[0] },
  });
  chart.drawn = true;
}

/** Counts of values in bins of equal width, as the corners of steps. */
function steps(values, low, high, bins) {
  const counts = new Array(bins).fill(0);
  for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((value - low) / (high - low) * bins)))] += 1;
  return { x: counts.map((_, i) => low + (i + 0.5) * (high - low) / bins), y: counts };
}

/** Histograms of several SAEs' values in the same bins, from the smallest of all to the largest unless a range is given. */
function stepLines(saes, valuesOf, bins, t, range = null) {
  const all = saes.map(valuesOf);
  // Math.min(...values) has a limit.
  let [low, high] = range || all.flat().reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  if (low > high) [low, high] = [0, 1];
  return all.map((values, i) => ({
    ...steps(values, low, high > low ? high : low + 1, bins), name: saes[i].label, type: "scatter", mode: "lines",
    line: { shape: "hvh", ...series(t, saes[i]), width: 2 },
    fill: saes.length === 1 ? "tozeroy" : "none", hovertemplate: "%{y} features<extra>%{fullData.name}</extra>",
  }));
}

const live = (sae, column) => sae.columns[column].filter((value, i) => value !== null && sae.columns.firing_rate[i] > 0);

function drawCurves(data) {
  for (const [name, title, explanation] of data.curves) {
    const lines = (sae) => sae.history.filter((line) => name in line);
    const saes = data.saes.filter((sae) => lines(sae).some((line) => line[name] !== null));
    if (!saes.length) continue;
    addChart($("curves"), title, explanation, (t) => ({
      data: saes.map((sae) => ({
        x: lines(sae).map((line) => line.step), y: lines(sae).map((line) => line[name]), name: sae.label, mode: "lines+markers",
        line: series(t, sae), marker: { size: 4 }, hovertemplate: "step %{x}: %{y}<extra>%{fullData.name}</extra>",
      })),
      layout: { xaxis: { title: "step" }, yaxis: { type: name.endsWith("loss") ? "log" : "linear" } },
    }));
  }
}

function drawHistograms(data) {
  const log = (values) => values.map((value) => Math.log10(value));
  addChart($("histograms"), "Firing rate", "Share of tokens that select a feature. Live features only.", (t) => ({
    data: stepLines(data.saes, (sae) => log(live(sae, "firing_rate")), 40, t),
    layout: { xaxis: { tickprefix: "10<sup>", ticksuffix: "</sup>", title: "share of tokens" }, yaxis: { title: "features" } },
  }));
  const share = data.saes.map((sae) => {
    const alive = sae.columns.firing_rate.filter((value) => value > 0).length;
    return sae.label + " " + percent(alive / sae.columns.firing_rate.length);
  });
  addChart($("histograms"), "Largest activation of each feature", "Its magnitude. Live features only (of all features: " + share.join(", ") + "). Features on the left never fire strongly.", (t) => ({
    data: stepLines(data.saes, (sae) => log(live(sae, "max").map(Math.abs)), 40, t),
    layout: { xaxis: { tickprefix: "10<sup>", ticksuffix: "</sup>", title: "largest activation" }, yaxis: { title: "features" } },
  }));
  addChart($("histograms"), "Encoder and decoder", "Cosine between a feature's encoder and decoder directions.", (t) => ({
    data: stepLines(data.saes, (sae) => live(sae, "alignment"), 40, t),
    layout: { xaxis: { title: "cosine" }, yaxis: { title: "features" } },
  }));
}

/** How well features match those of other seeds: a line for each SAE whose seeds are known. */
function drawMatches(data) {
  const known = data.saes.filter((sae) => sae.seeds);
  const line = (x, drawn) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { width: 1.5, ...drawn } });
  addChart($("matches"), "How well the direction of each feature matches one of another seed", "Absolute cosine with its match. Right of the black line a feature comes back as a direction. The dotted lines are what random directions reach.", (t) => ({
    data: stepLines(known, (sae) => sae.columns.direction_match, 25, t, [0, 1]),
    layout: {
      xaxis: { range: [0, 1], title: "cosine" }, yaxis: { title: "features" },
      shapes: [...known.map((sae) => line(sae.seeds.random, { color: t.series[sae.place % 6], dash: "dot" })), line(0.7, { color: t.fg })],
    },
  }));
}
