async function start() {
  const data = JSON.parse(await unpack("data"));
  data.saes.forEach((sae, place) => { sae.place = place; });
  featurePages(data, featureTable(data));

  if ($("curves")) drawCurves(data);
  drawHistograms(data);
  if ($("matches")) drawMatches(data);

  await loadPlotly();
  const redraw = () => charts.forEach((chart, plot) => { if (chart.drawn) draw(plot); });
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && !charts.get(target).drawn) draw(target);
    }
  }, { rootMargin: "400px" });
  charts.forEach((_, plot) => near.observe(plot));
  darkScheme.addEventListener("change", redraw);
  addEventListener("beforeprint", () => { printing = true; charts.forEach((_, plot) => draw(plot)); });
  addEventListener("afterprint", () => { printing = false; redraw(); });
  document.documentElement.dataset.ready = "yes";
}
start();
