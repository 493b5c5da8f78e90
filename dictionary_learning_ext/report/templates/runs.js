/** The charts of a sweep, as plotly draws them. */
async function start() {
  const figures = JSON.parse(await unpack("data"));
  await loadPlotly();
  const hasWebGL = document.createElement("canvas").getContext("webgl") !== null;
  for (const { data, layout } of figures) {
    if (data[0].type === "parcoords" && !hasWebGL) continue; // plotly draws its lines with it
    const plot = el("div", { class: "plot tall" });
    $("figures").append(plot);
    const camera = { modeBarButtons: [["toImage"]], toImageButtonOptions: { format: "svg" }, displaylogo: false };
    await Plotly.newPlot(plot, data, layout, { responsive: true, ...camera });
  }
  document.documentElement.dataset.ready = "yes";
}
start();
