// Distributions of cos(q, k) and z: all pairs as an area, attention as a line.
SF.section("geometry", (root, part) => {
  const {data, models, html, svg} = SF;
  const runs = data.runs.filter((run) => run.histograms.length > 0);
  const quantities = [["cosine", "cos(q, k)"], ["z", "z"]].filter(([key]) => runs.some((run) => run.histograms.some((item) => item.quantity === key)));
  const layers = [...new Set(runs.flatMap((run) => run.histograms.map((item) => item.layer)))].sort((a, b) => a - b);
  // Softmax against expressive where both are there.
  function pair() {
    const of = (attention) => runs.findIndex((run) => run.attention === attention);
    const [left, right] = [of("softmax"), of("expressive")];
    return left >= 0 && right >= 0 ? [left, right] : runs.slice(0, 2).map((_, index) => index);
  }
  const state = {quantity: quantities[0][0], layer: layers[0], runs: pair()};
  const model = (run) => models.find((candidate) => candidate.name === run.name);
  const name = (run) => model(run).runs.filter((other) => other.histograms.length > 0).length > 1 ? `${run.name}, seed ${run.seed}` : run.name;
  const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
  const densities = (histogram, weights) => {
    const total = sum(weights) || 1;
    return weights.map((weight, bin) => (weight || 0) / total / (histogram.edges[bin + 1] - histogram.edges[bin]));
  };
  const grid = html("div", {class: "panels"});
  const controls = part("controls");
  const some = runs.map((run, index) => [index, name(run)]);
  controls.append(SF.segments("Quantity", quantities, state.quantity, (key) => { state.quantity = key; refresh(); }).element);
  if (layers.length > 1) controls.append(SF.select("Layer", layers.map((layer) => [layer, String(layer + 1)]), state.layer, (value) => { state.layer = +value; refresh(); }).element);
  if (runs.length > 1) {
    controls.append(SF.select("Left", some, state.runs[0], (value) => { state.runs[0] = +value; refresh(); }).element,
      SF.select("Right", some, state.runs[1], (value) => { state.runs[1] = +value; refresh(); }).element);
  }
  part("panels").append(
    html("ul", {class: "legend"},
      html("li", null, svg("svg", {width: 22, height: 12, "aria-hidden": "true"}, svg("rect", {class: "density-pairs", width: 22, height: 12})), "all allowed pairs"),
      html("li", null, svg("svg", {width: 22, height: 12, "aria-hidden": "true"}, svg("path", {d: "M1 9L8 4L14 7L21 2", class: "density-attended", style: "stroke:var(--ink)"})), "attention weight")),
    html("p", {class: "caption"}, "Each panel has its own vertical scale; every distribution has area 1."),
    grid);

  const find = (run, head) => run.histograms.find((item) => item.quantity === state.quantity && item.layer === state.layer && item.head === head);
  function outline(edges, values, x, y) {
    return `M${x(edges[0])} ${y(0)}` + values.map((value, bin) => `V${y(value).toFixed(1)}H${x(edges[bin + 1]).toFixed(1)}`).join("") + `V${y(0)}`;
  }
  function panel(run, head, range) {
    const histogram = find(run, head);
    const figure = html("figure", {class: "chart"});
    const label = quantities.find(([key]) => key === state.quantity)[1];
    if (!histogram) return html("div", null, html("h4", null, `${name(run)}, head ${head + 1}`), html("p", {class: "share"}, "not recorded"));
    const pairs = densities(histogram, histogram.counts);
    const attended = histogram.attended.length ? densities(histogram, histogram.attended) : null;
    const peak = Math.max(1e-9, ...pairs, ...(attended || []));
    const negative = (weights) => sum(weights.filter((_, bin) => histogram.edges[bin] + histogram.edges[bin + 1] < 0)) / (sum(weights) || 1);
    const share = `Below zero: ${SF.percent(negative(histogram.counts), 0)} of pairs` + (attended ? `, ${SF.percent(negative(histogram.attended), 0)} of attention` : "");
    SF.fit(figure, (width) => {
      const height = 190;
      const box = {left: 38, right: width - 8, top: 26, bottom: height - 42};
      const x = SF.linear(range[0], range[1], box.left, box.right);
      const y = SF.linear(0, peak * 1.05, box.bottom, box.top);
      const chart = svg("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${name(run)}, layer ${state.layer + 1}, head ${head + 1}: density of ${label}. ${share}.`});
      SF.axes(chart, box, x, y, {xFormat: SF.short, yFormat: SF.short, xLabel: label, yLabel: "density", density: 0.8});
      chart.append(svg("path", {class: "density-pairs", d: outline(histogram.edges, pairs, x, y)}));
      if (attended) chart.append(svg("path", {class: "density-attended", d: outline(histogram.edges, attended, x, y), style: `stroke:${model(run).colour}`}));
      if (range[0] < 0 && range[1] > 0) chart.append(svg("line", {class: "zero", x1: x(0), x2: x(0), y1: box.top, y2: box.bottom}));
      chart.addEventListener("pointermove", (event) => {
        const frame = chart.getBoundingClientRect();
        const value = x.invert((event.clientX - frame.left) * width / frame.width);
        const bin = histogram.edges.findIndex((edge, index) => value >= edge && value < histogram.edges[index + 1]);
        if (bin < 0) { SF.hideTip(); return; }
        const rows = [[null, "pairs", SF.percent(histogram.counts[bin] / (sum(histogram.counts) || 1), 1)]];
        if (attended) rows.push([model(run).colour, "attention", SF.percent((histogram.attended[bin] || 0) / (sum(histogram.attended) || 1), 1)]);
        SF.showTip({x: event.clientX, y: event.clientY}, `${label} from ${SF.short(histogram.edges[bin])} to ${SF.short(histogram.edges[bin + 1])}`, rows);
      });
      chart.addEventListener("pointerleave", SF.hideTip);
      figure.replaceChildren(chart);
    });
    return html("div", null, html("h4", null, `${name(run)}, head ${head + 1}`), figure, html("p", {class: "share"}, share));
  }
  function refresh() {
    const chosen = [...new Set(state.runs)].map((index) => runs[index]);
    const heads = [...new Set(chosen.flatMap((run) => run.histograms.filter((item) => item.layer === state.layer && item.quantity === state.quantity).map((item) => item.head)))].sort((a, b) => a - b);
    const shown = chosen.flatMap((run) => heads.map((head) => find(run, head))).filter(Boolean);
    // One horizontal scale for all panels, so that they compare.
    const range = [Math.min(...shown.map((item) => item.edges[0])), Math.max(...shown.map((item) => item.edges[item.edges.length - 1]))];
    grid.style.setProperty("--columns", chosen.length);
    grid.replaceChildren(...heads.flatMap((head) => chosen.map((run) => panel(run, head, range))));
  }
  refresh();
});
