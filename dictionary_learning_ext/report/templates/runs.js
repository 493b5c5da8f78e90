/** The charts of a sweep, as plotly draws them. */
async function start() {
  const figures = JSON.parse(await unpack("data"));
  await loadPlotly();
  for (const { data, layout } of figures) {
    const plot = el("div", { class: "plot tall" });
    $("figures").append(plot);
    const camera = { modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg" }, displaylogo: false };
    await Plotly.newPlot(plot, data, layout, { responsive: true, ...camera });
  }
  document.documentElement.dataset.ready = "yes";
}
start();
