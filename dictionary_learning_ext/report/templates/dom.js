const $ = (id) => document.getElementById(id);

/** An element; children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

async function unpack(id) {
  const bytes = Uint8Array.from(atob($(id).textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  $(id).textContent = "";
  return new Response(stream).text();
}

async function loadPlotly() {
  const code = el("script");
  code.textContent = await unpack("plotly");
  document.head.append(code);
}

function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(digits)));
}

const percent = (share) => (share === null ? "–" : number(100 * share, 2) + "%");
const address = (label, feature) => "#feature/" + encodeURIComponent(label) + "/" + feature;
/** A token as a chip; its leading space is a dot. */
function token(text) {
  const starts = text.startsWith(" ") && text.length > 1;
  return el("b", { class: "tok" }, ...(starts ? [el("i", {}, "·"), text.slice(1)] : [text]));
}
