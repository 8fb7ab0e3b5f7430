// Signatures: experts by label, prompts in a plane, routing over a text.
SF.section("signatures", (root, part) => {
  const {data, html, svg} = SF;
  const {labels, layers, means, points, explained, texts} = data.signatures;
  const colour = (index) => `var(--series-${index % 8})`;
  const share = (value) => (100 * value).toFixed(value < 0.0995 ? 1 : 0);

  // Layer × expert: one label, or a label less another
  const map = part("map"), note = part("map-note"), most = Math.max(...layers.map((layer) => layer.experts));
  let label = 0, other = -1;
  const value = (layer, expert) => means[label][layer][expert] - (other < 0 ? 0 : means[other][layer][expert]);
  function drawMap() {
    let peak = 1e-9;
    layers.forEach((layer, l) => { for (let e = 0; e < layer.experts; e++) peak = Math.max(peak, Math.abs(value(l, e))); });
    const dense = most > 16;
    const cells = (layer, l) => Array.from({length: most}, (_, e) => {
      if (e >= layer.experts) return html("td", {class: "absent"});
      const v = value(l, e), partOf = Math.abs(v) / peak;
      const text = (other >= 0 && v > 0 ? "+" : v < 0 ? "−" : "") + share(Math.abs(v));
      const title = `${layer.name}, expert ${e}: ${text} ${other < 0 ? "%" : "points"}`;
      const shade = partOf > 0.65 ? "deep" : partOf > 0.45 ? "mid" : null;
      const tell = () => { note.textContent = title; };
      return html("td", {class: [shade, v < 0 ? "less" : null].filter(Boolean).join(" ") || null, title,
        vars: {"--part": partOf.toFixed(3)}, onmouseenter: tell, onclick: () => { tell(); chooseLayer(l); }},
      dense ? html("span", {class: "hidden-text"}, text) : text);
    });
    map.replaceChildren(html("table", {class: dense ? "heat-table dense" : "heat-table", "data-label": labels[label], "data-other": other < 0 ? "" : labels[other]},
      html("thead", null, html("tr", null, html("th", {scope: "col"}, "Layer"),
        Array.from({length: most}, (_, e) => html("th", {scope: "col"}, dense && e % 4 ? "" : String(e))))),
      html("tbody", null, layers.map((layer, l) => html("tr", null, html("th", {scope: "row"}, layer.name), cells(layer, l))))));
    note.textContent = other < 0
      ? `Share of each expert in percent of the layer's assignments, mean over the prompts of ${labels[label]}.`
      : `Share in prompts of ${labels[label]} less that in ${labels[other]}, in points; less is shaded in the other colour.`;
  }
  const items = labels.map((name, index) => [index, name]);
  part("map-controls").append(
    (labels.length <= 6 ? SF.segments("Label", items, 0, (v) => { label = v; drawMap(); })
      : SF.select("Label", items, 0, (v) => { label = +v; drawMap(); })).element,
    SF.select("Less", [[-1, "nothing"], ...items], -1, (v) => { other = +v; drawMap(); }).element);

  // Plane
  const plane = part("plane");
  let chosen = -1, drawn = [];
  const textOf = (id) => texts.findIndex((text) => text.id === id);
  const describe = (point) => `${point.id}, ${labels[point.label]}`;
  function focusPoint(index) {
    chosen = (index + points.length) % points.length;
    drawn.forEach((mark, i) => mark.classList.toggle("chosen", i === chosen));
    const box = drawn[chosen].getBoundingClientRect(), point = points[chosen];
    SF.showTip({x: box.right, y: box.top}, point.id, [[colour(point.label), labels[point.label], textOf(point.id) < 0 ? "" : "text kept"]]);
    plane.querySelector("svg").setAttribute("aria-label", `Prompt ${chosen + 1} of ${points.length}: ${describe(point)}`);
  }
  const open = (index) => { const found = textOf(points[index].id); if (found >= 0) chooseText(found); };
  const xs = points.map((p) => p.at[0]), ys = points.map((p) => p.at[1]);
  const range = (all) => { const low = Math.min(...all), high = Math.max(...all), pad = (high - low || 1) * 0.06; return [low - pad, high + pad]; };
  const redraw = SF.fit(plane, (width) => {
    const height = Math.min(460, Math.max(280, width * 0.5));
    const box = {left: 52, right: width - 12, top: 26, bottom: height - 46};
    const [x0, x1] = range(xs), [y0, y1] = range(ys);
    const x = SF.linear(x0, x1, box.left, box.right), y = SF.linear(y0, y1, box.bottom, box.top);
    const picture = svg("svg", {viewBox: `0 0 ${width} ${height}`, role: "application", tabindex: "0",
      "aria-label": `Plane of ${points.length} prompts; arrow keys step through them`});
    const name = (i) => `Component ${i + 1} (${(100 * (explained[i] || 0)).toFixed(0)} % of the variance)`;
    SF.axes(picture, box, x, y, {xFormat: SF.short, yFormat: SF.short, xLabel: name(0), yLabel: name(1)});
    drawn = points.map((point, index) => svg("circle", {class: "prompt-dot", cx: x(point.at[0]), cy: y(point.at[1]), r: 4.5,
      style: `fill:${colour(point.label)}`, onmouseenter: () => focusPoint(index), onmouseleave: SF.hideTip, onclick: () => open(index)}));
    drawn.forEach((mark, i) => mark.classList.toggle("kept", textOf(points[i].id) >= 0));
    picture.append(...drawn);
    picture.addEventListener("keydown", (event) => {
      const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
      if (step) { focusPoint(chosen < 0 && step < 0 ? 0 : chosen + step); event.preventDefault(); }
      else if ((event.key === "Enter" || event.key === " ") && chosen >= 0) { open(chosen); event.preventDefault(); }
      else if (event.key === "Escape") SF.hideTip();
    });
    picture.addEventListener("blur", SF.hideTip);
    plane.replaceChildren(picture);
  });
  plane.before(html("ul", {class: "legend"}, labels.map((text, index) => html("li", null,
    html("i", {class: "dot", vars: {"--dot": colour(index)}}), text))));
  plane.hidden = false;
  redraw();

  // Routing over a text
  let textAt = 0, layerAt = layers.length - 1, expertAt = -1;
  let chooseText = () => {}, chooseLayer = () => {};
  drawMap();
  if (!texts.length) return;
  const view = part("text"), textNote = part("text-note");
  const hue = (expert) => Math.round((expert * 137.508) % 360);
  function drawText() {
    const text = texts[textAt], experts = text.experts[layerAt], weights = text.weights[layerAt];
    view.dataset.layer = layers[layerAt].name;
    view.replaceChildren(...text.pieces.map((piece, t) => {
      const own = experts[t], w = weights[t], first = own[0];
      const rank = own.indexOf(expertAt);
      const dim = expertAt >= 0 && rank < 0;
      const strength = expertAt >= 0 ? (rank < 0 ? 0 : w[rank]) : (w[0] || 0);
      const said = own.map((e, i) => `${e} (${w[i]} %)`).join(", ") || "none";
      const shown = piece.replace(/\n/g, "↵\n").replace(/\t/g, "⇥");
      const tell = () => { textNote.textContent = `Token ${t + 1}${t >= text.own ? ", generated" : ""}: experts ${said}`; };
      const style = first === undefined ? null : `--hue:${hue(expertAt >= 0 && rank >= 0 ? expertAt : first)};--strength:${dim ? 0 : Math.min(60, 12 + strength / 2)}%`;
      return html("span", {class: "routed-token" + (t >= text.own ? " generated" : ""), style, title: `experts ${said}`,
        onmouseenter: tell, onclick: () => { tell(); expertAt = expertAt === first ? -1 : first; expertBox.box.value = String(expertAt); drawText(); }}, shown);
    }));
    textNote.textContent = expertAt < 0
      ? "Each token is coloured by its first expert, more strongly where that has more weight. A click on a token shows all tokens of that expert."
      : `Tokens that go to expert ${expertAt} of ${layers[layerAt].name}: ${experts.filter((own) => own.includes(expertAt)).length} of ${text.pieces.length}.`;
  }
  const textBox = SF.select("Prompt", texts.map((text, index) => [index, `${labels[text.label]}: ${text.id}`]), 0, (v) => { textAt = +v; drawText(); });
  const slider = html("input", {type: "range", min: "0", max: String(layers.length - 1), step: "1", value: String(layerAt),
    "aria-label": "Layer", oninput: () => chooseLayer(+slider.value)});
  const sliderName = html("output", null, layers[layerAt].name);
  const expertItems = () => [[-1, "first of each token"], ...Array.from({length: layers[layerAt].experts}, (_, e) => [e, `expert ${e}`])];
  let expertBox = SF.select("Show", expertItems(), -1, (v) => { expertAt = +v; drawText(); });
  chooseText = (index) => {
    textAt = index;
    textBox.box.value = String(index);
    drawText();
    view.scrollIntoView({block: "nearest"});
  };
  chooseLayer = (index) => {
    layerAt = index;
    slider.value = String(index);
    sliderName.textContent = layers[index].name;
    slider.setAttribute("aria-valuetext", layers[index].name);
    if (expertAt >= layers[index].experts) expertAt = -1;
    expertBox.box.replaceChildren(...expertItems().map(([key, name]) => html("option", {value: key}, name)));
    expertBox.box.value = String(expertAt);
    drawText();
  };
  part("text-controls").append(textBox.element,
    html("label", {class: "control"}, "Layer", html("span", {class: "slider"}, slider, sliderName)), expertBox.element);
  drawText();
});
