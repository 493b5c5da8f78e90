/** The charts of a sweep, as plotly draws them. */
async function start() {
  const figures = JSON.parse(await unpack("data"));
  await loadPlotly();
  for (const { data, layout } of figures) {
    const plot = el("div", { class: "plot tall" });
    $("figures").append(plot);
    await Plotly.newPlot(plot, data, layout, { responsive: true, toImageButtonOptions: { format: "svg" } });
  }
  document.documentElement.dataset.ready = "yes";
}
start();
