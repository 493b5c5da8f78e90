async function start() {
  const data = JSON.parse(await unpack("data"));
  data.saes.forEach((sae, place) => { sae.place = place; });
  featurePages(data, featureTable(data));

  if ($("curves")) drawCurves(data);
  drawHistograms(data);
  if ($("matches")) drawMatches(data);

  await loadPlotly();
  const redraw = () => charts.forEach((chart, plot) => { if (chart.drawn) draw(plot); });
  for (const plot of charts.keys()) await draw(plot);
  darkScheme.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; charts.forEach((_, plot) => draw(plot)); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  document.documentElement.dataset.ready = "yes";
}
start();
