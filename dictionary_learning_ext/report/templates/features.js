const ROWS = 50;
/** How a column's values are written, by its `show`. */
const SHOW = {
  number: (value) => number(value),
  cosine: (value) => (value === null ? "–" : value.toFixed(2)),
  percent,
  "share of seeds": (value, of) => (value === null ? "–" : value + "/" + of),
};

/** The table: what is searched for, sorted by a column, a few rows at a time. */
function featureTable(data) {
  const state = { sae: 0, key: "rank", descending: false, rows: ROWS };
  const sae = () => data.saes[state.sae];
  const columns = [{ key: "feature", title: "feature" }, ...data.columns.filter(({ key, title }) => title && data.saes.some((one) => key in one.columns))];
  const isText = ({ show }) => show === "tokens";
  const kind = (column) => (isText(column) ? "text " : "") + (column.is_extra ? "extra" : "");
  /** A feature's tokens in a column of tokens. */
  const words = (one, { key }, feature) => (one.columns[key]?.[feature] ?? []).map((i) => data.tokens[i]);
  const texts = data.saes.map((one) => one.columns.firing_rate.map((_, feature) =>
    columns.filter((column) => isText(column) && column.key in one.columns).flatMap((column) => words(one, column, feature)).join("\n").toLowerCase()));

  const value = (feature, column) => {
    if (column.key === "feature") return feature;
    if (isText(column)) return words(sae(), column, feature)[0]?.trim().toLowerCase() ?? null;
    return sae().columns[column.key]?.[feature] ?? null;
  };

  function matching() {
    const query = $("search").value.toLowerCase();
    const exact = query.trim();
    const features = sae().columns.firing_rate.map((_, feature) => feature)
      .filter((feature) => !query || String(feature) === exact || texts[state.sae][feature].includes(query));
    const column = columns.find((one) => one.key === state.key) || { key: state.key };
    const sign = state.descending ? -1 : 1;
    return features.sort((a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === y) return a - b;
      if (x === null) return 1;
      if (y === null) return -1;
      return x < y ? -sign : sign;
    });
  }

  function show() {
    const features = matching();
    const body = $("table").tBodies[0];
    body.replaceChildren(...features.slice(0, state.rows).map((feature) => row(sae(), feature)));
    const shown = Math.min(state.rows, features.length);
    $("found").textContent = features.length + (features.length === 1 ? " feature" : " features") + (shown < features.length ? ", showing " + shown : "") + (state.key === "rank" ? " (those that fire most consistently on one token come first, those selected fewer than " + data.least + " times last)" : "");
    $("more").hidden = shown === features.length;
    for (const header of $("table").tHead.rows[0].cells) {
      header.setAttribute("aria-sort", header.dataset.key !== state.key ? "none" : state.descending ? "descending" : "ascending");
    }
  }

  function row(one, feature) {
    const cells = columns.map((column) => {
      if (column.key === "feature") {
        const name = one.pages[feature] ? el("a", { href: address(one.label, feature) }, String(feature)) : String(feature);
        return el("th", { scope: "row" }, name);
      }
      const found = one.columns[column.key]?.[feature] ?? null;
      return el("td", { class: kind(column) }, ...(isText(column) ? words(one, column, feature).map(token) : [SHOW[column.show](found, one.seeds?.of)]));
    });
    const element = el("tr", {}, ...cells);
    if (one.pages[feature]) element.addEventListener("click", () => { location.hash = address(one.label, feature); });
    return element;
  }

  for (const column of columns) {
    const button = el("button", { type: "button" }, column.title);
    button.addEventListener("click", () => {
      state.descending = state.key === column.key ? !state.descending : !isText(column) && column.key !== "feature";
      state.key = column.key;
      show();
    });
    $("table").tHead.rows[0].append(el("th", { scope: "col", class: kind(column), "data-key": column.key }, button));
  }
  $("search").addEventListener("input", () => { state.rows = ROWS; show(); });
  $("sae").addEventListener("change", () => { state.sae = Number($("sae").value); state.rows = ROWS; show(); });
  $("more").addEventListener("click", () => { state.rows += 4 * ROWS; show(); });
  show();
  return { order: matching, choose(i) { if (state.sae !== i) { state.sae = i; $("sae").value = i; show(); } } };
}

/** A context, its tokens shaded by the magnitude of the feature's activation. */
function context(data, [value, , at, tokens, active], largest) {
  const activations = new Map();
  for (let i = 0; i < active.length; i += 2) activations.set(active[i], active[i + 1]);
  const words = tokens.map((i, place) => {
    const activation = activations.get(place) || 0;
    const strength = largest ? Math.min(1, Math.abs(activation / largest)) : 0;
    const style = activation ? "background: rgba(var(" + (activation > 0 ? "--on" : "--off") + ")," + (0.12 + 0.68 * strength).toFixed(2) + ")" : null;
    return el("span", { style, class: place === at ? "at" : null, title: activation ? number(activation) : null }, place ? data.tokens[i] : data.tokens[i].trimStart());
  });
  const shown = el("span", { class: "value" }, number(value));
  const text = el("span", { class: "words" }, ...words);
  text.addEventListener("click", ({ target }) => {
    if (!target.title) return;
    shown.textContent = target.title;
    for (const word of words) word.classList.toggle("at", word === target);
  });
  return el("div", { class: "context" }, shown, text);
}

function histogram(counts, width) {
  const most = Math.max(1, ...counts);
  const n = counts.length, step = 100 / Math.max(1, n);
  const bars = counts.map((count, i) => {
    const height = count ? Math.max(1, 85 * Math.log1p(count) / Math.log1p(most)) : 0;
    const title = svg("title", {}, count + " between " + number(i * width) + " and " + number((i + 1) * width));
    return svg("rect", { x: i * step + "%", y: 88 - height + "%", width: step * 0.9 + "%", height: height + "%" }, title);
  });
  return svg("svg", { class: "bars", role: "img", "aria-label": "Histogram of activations, counts on a log scale" }, ...bars,
    svg("text", { x: 0, y: "99%" }, "0"), svg("text", { x: "50%", y: "99%", "text-anchor": "middle" }, "tallest bar: " + most), svg("text", { x: "100%", y: "99%", "text-anchor": "end" }, number(n * width)));
}

const fact = (name, value) => el("div", {}, el("b", {}, value), el("span", {}, name));

function logits(data, title, rows) {
  const items = rows.map(([i, logit]) => el("li", {}, token(data.tokens[i]), el("span", {}, (logit > 0 ? "+" : "") + number(logit))));
  return el("div", {}, el("h3", {}, title), el("ol", { class: "logits" }, ...items));
}

function pageBody(data, sae, feature) {
  const page = sae.pages[feature], of = (column) => sae.columns[column][feature];
  const largest = of("max");
  const facts = data.columns.filter((column) => column.fact && column.key in sae.columns)
    .map((column) => fact(column.fact, SHOW[column.show](of(column.key), sae.seeds?.of)));
  const parts = [];
  parts.push(el("div", { class: "facts" }, ...facts));
  parts.push(el("h3", {}, "Strongest contexts"), el("p", { class: "note" }, "On the left is the activation at the underlined token. Select another shaded token to see its activation."),
    ...page.top.map((one) => context(data, one, largest)));
  parts.push(el("h3", {}, "Random contexts"), el("p", { class: "note" }, "A random sample of the tokens that select it, strongest first."),
    ...page.sampled.map((one) => context(data, one, largest)));
  parts.push(el("h3", {}, "Activations when selected"), el("p", { class: "note" }, "Counts on a log scale." + (page.negative ? " By magnitude; " + page.negative + " of the activations are negative." : "")),
    histogram(page.histogram, page.width));
  const side = [];
  if (page.promoted) side.push(logits(data, "Promotes", page.promoted), logits(data, "Suppresses", page.suppressed));
  const near = page.near.map(([other, cosine]) => {
    const name = sae.pages[other] ? el("a", { href: address(sae.label, other) }, String(other)) : String(other);
    return el("li", {}, el("span", {}, name, " ", ...sae.columns.fires_on[other].slice(0, 2).map((i) => token(data.tokens[i]))), el("span", {}, number(cosine)));
  });
  side.push(el("div", {}, el("h3", {}, "Nearest directions"), el("ol", { class: "logits" }, ...near)));
  parts.push(el("div", { class: "columns" }, ...side));
  return parts;
}

/** Pages open by the address (#feature/<SAE>/<number>), so that links, history and bookmarks work. */
function featurePages(data, table) {
  const dialog = $("page");
  let current = null;

  function open() {
    const match = /^#feature\/([^/]+)\/(\d+)$/.exec(location.hash);
    const index = match ? data.saes.findIndex((sae) => sae.label === decodeURIComponent(match[1])) : -1;
    const sae = data.saes[index];
    if (!sae || !sae.pages[match[2]]) {
      if (dialog.open) dialog.close();
      return;
    }
    current = { index, feature: Number(match[2]) };
    $("page-title").textContent = "Feature " + match[2] + (data.saes.length > 1 ? " of " + sae.label : "");
    $("page-body").replaceChildren(...pageBody(data, sae, match[2]));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    $("page-title").focus();
  }

  function move(by) {
    table.choose(current.index);
    const sae = data.saes[current.index];
    const order = table.order().filter((feature) => sae.pages[feature]);
    const place = order.indexOf(current.feature) + by;
    if (order.length) location.replace(address(sae.label, order[(place + order.length) % order.length]));
  }

  $("previous").addEventListener("click", () => move(-1));
  $("next").addEventListener("click", () => move(1));
  dialog.addEventListener("close", () => {
    if (location.hash.startsWith("#feature/")) history.replaceState(null, "", location.pathname + location.search);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  addEventListener("hashchange", open);
  addEventListener("keydown", (event) => {
    if (dialog.open && event.key === "ArrowLeft") move(-1);
    if (dialog.open && event.key === "ArrowRight") move(1);
    if (!dialog.open && event.key === "/" && !/^(INPUT|SELECT)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      $("search").focus();
    }
  });
  open();
}
