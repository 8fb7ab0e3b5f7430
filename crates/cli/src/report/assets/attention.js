// Attention maps: choose run, window, layer and head; read weights by
// pointer or arrow keys.
SF.section("attention", (root, part) => {
  const {data, html, svg, finite} = SF;
  const runs = data.runs.filter((run) => run.samples.some((sample) => sample.maps.length > 0));
  const state = {run: 0, window: 0, map: 0, scale: "unit"};
  const seeds = (run) => runs.filter((other) => other.name === run.name).length > 1;
  const windowsOf = (run) => run.samples.filter((sample) => sample.maps.length > 0);
  const task = (token) => token.subtask === null ? "" : ` task-${token.subtask % 8}`;
  const taskName = (token) => token.subtask === null ? "" : ` (${data.subtasks[token.subtask].name})`;
  const live = html("p", {class: "caption", "aria-live": "polite"});
  const stage = html("div");
  const side = html("div", {class: "side"});
  let cursor = null;

  const current = () => {
    const run = runs[state.run];
    const samples = windowsOf(run);
    const sample = samples.find((candidate) => candidate.window === state.window) || samples[0];
    state.window = sample.window;
    state.map = Math.min(state.map, sample.maps.length - 1);
    return {run, sample, map: sample.maps[state.map], window: data.windows[sample.window]};
  };

  const runSelect = SF.select("Model", runs.map((run, index) => [index, seeds(run) ? `${run.name}, seed ${run.seed}` : run.name]), 0, (value) => { state.run = +value; refresh(); });
  const windowSelect = SF.select("Window", [], "", (value) => { state.window = +value; refresh(); });
  const layerSelect = SF.select("Layer", [], "", (value) => pick(+value, null));
  const headSelect = SF.select("Head", [], "", (value) => pick(null, +value));
  const step = (by) => {
    const samples = windowsOf(runs[state.run]);
    const at = samples.findIndex((sample) => sample.window === state.window);
    state.window = samples[(at + by + samples.length) % samples.length].window;
    refresh();
  };
  const stepper = html("div", {class: "stepper"},
    html("button", {type: "button", "aria-label": "Previous window", onclick: () => step(-1)}, "←"),
    html("button", {type: "button", "aria-label": "Next window", onclick: () => step(1)}, "→"));
  part("controls").append(runSelect.element, windowSelect.element, stepper, layerSelect.element, headSelect.element,
    SF.segments("Shade", [["unit", "0 to 1"], ["max", "to maximum"]], "unit", (value) => { state.scale = value; refresh(); }).element);
  part("maps").append(html("div", {class: "attention"}, stage, side));

  // Keeps the other coordinate where the layer has it.
  function pick(layer, head) {
    const {sample, map} = current();
    const wanted = {layer: layer ?? map.layer, head: head ?? map.head};
    let found = sample.maps.findIndex((item) => item.layer === wanted.layer && item.head === wanted.head);
    if (found < 0) found = sample.maps.findIndex((item) => item.layer === wanted.layer);
    state.map = Math.max(0, found);
    refresh();
  }
  function options(box, items, value) {
    box.replaceChildren(...items.map(([key, name]) => html("option", {value: key}, name)));
    box.value = String(value);
  }

  function heat({map, sample, window}) {
    const length = window.tokens.length;
    const queries = map.weights.length / length;
    const offset = length - queries;
    const cell = 30, edge = 40, gap = 2;
    const widthOf = edge + length * cell, heightOf = edge + queries * cell;
    const top = state.scale === "unit" ? 1 : Math.max(1e-6, ...map.weights.filter(finite));
    const size = Math.min(15, cell * 0.52);
    const picture = svg("svg", {
      class: "heat", viewBox: `0 0 ${widthOf} ${heightOf}`, tabindex: 0, role: "group", "aria-roledescription": "attention map",
      "aria-label": `Attention of layer ${map.layer + 1}, head ${map.head + 1}: queries are rows, keys are columns. Use the arrow keys to read weights.`,
      style: `max-width:${Math.min(length, 18) * 34 + edge}px`,
    });
    const chip = (token, x, y) => [
      svg("rect", {class: "chip" + task(token), x: x + 2, y: y + 3, width: cell - 4, height: cell - 6, rx: 4}),
      svg("text", {class: "label", x: x + cell / 2, y: y + cell / 2 + 0.5, "font-size": token.text.length > 3 ? size * 0.6 : size}, token.text.length > 5 ? token.text.slice(0, 4) + "…" : token.text)];
    window.tokens.forEach((token, key) => {
      picture.append(...chip(token, edge + key * cell, 0));
      if (window.sources.includes(key)) picture.append(svg("rect", {class: "source-bar", x: edge + key * cell + 5, y: cell + 2, width: cell - 10, height: 3, rx: 1.5}));
    });
    for (let row = 0; row < queries; row++) {
      picture.append(...chip(window.tokens[offset + row], 0, edge + row * cell));
      for (let key = 0; key < length; key++) {
        const weight = map.weights[row * length + key];
        const place = {x: edge + key * cell + gap / 2, y: edge + row * cell + gap / 2, width: cell - gap, height: cell - gap, rx: 2};
        const masked = sample.causal && key > offset + row;
        if (masked) continue;
        picture.append(svg("rect", {class: "bed", ...place}));
        if (finite(weight)) picture.append(svg("rect", {class: "cell", ...place, "fill-opacity": Math.max(0, Math.min(1, weight / top)).toFixed(3)}));
      }
    }
    const marker = svg("g", {"pointer-events": "none"});
    picture.append(marker);
    function show(row, key, place, speak) {
      marker.replaceChildren(
        svg("rect", {class: "band", x: edge, y: edge + row * cell, width: (sample.causal ? offset + row + 1 : length) * cell, height: cell, rx: 3}),
        svg("rect", {class: "cursor", x: edge + key * cell, y: edge + row * cell, width: cell, height: cell, rx: 3}));
      const weight = map.weights[row * length + key];
      const [query, target] = [window.tokens[offset + row], window.tokens[key]];
      const masked = sample.causal && key > offset + row;
      const amount = masked ? "masked" : SF.percent(weight, 1);
      SF.showTip(place, amount, [[null, "query", `${offset + row + 1}: ${query.text}${taskName(query)}`], [null, "key", `${key + 1}: ${target.text}${taskName(target)}`]]);
      if (speak) live.textContent = `Query ${offset + row + 1} ${query.text}, key ${key + 1} ${target.text}: ${amount}`;
    }
    const leave = () => { marker.replaceChildren(); SF.hideTip(); };
    picture.addEventListener("pointermove", (event) => {
      const frame = picture.getBoundingClientRect();
      const key = Math.floor(((event.clientX - frame.left) / frame.width * widthOf - edge) / cell);
      const row = Math.floor(((event.clientY - frame.top) / frame.height * heightOf - edge) / cell);
      if (key < 0 || row < 0 || key >= length || row >= queries) { leave(); return; }
      show(row, key, {x: event.clientX, y: event.clientY});
    });
    picture.addEventListener("pointerleave", leave);
    picture.addEventListener("blur", leave);
    picture.addEventListener("keydown", (event) => {
      const move = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (event.key === "Escape") leave();
      if (!move) return;
      event.preventDefault();
      const at = cursor || [queries - 1, length - 1];
      cursor = cursor ? [at[0] + move[0], at[1] + move[1]] : at;
      cursor = [Math.max(0, Math.min(queries - 1, cursor[0])), Math.max(0, Math.min(length - 1, cursor[1]))];
      const frame = picture.getBoundingClientRect();
      const unit = frame.width / widthOf;
      show(cursor[0], cursor[1], {x: frame.left + (edge + (cursor[1] + 1) * cell) * unit, y: frame.top + (edge + (cursor[0] + 1) * cell) * unit}, true);
    });
    return {picture, top};
  }

  // A head in small: cells gathered by shade, one path each.
  function thumbnail(map, length, causal) {
    const queries = map.weights.length / length;
    const levels = 12, paths = new Map();
    const top = state.scale === "unit" ? 1 : Math.max(1e-6, ...map.weights.filter(finite));
    map.weights.forEach((weight, index) => {
      const level = finite(weight) ? Math.round(Math.min(1, weight / top) * levels) : 0;
      if (level < 1) return;
      const start = `M${index % length} ${length - queries + Math.floor(index / length)}h1v1h-1z`;
      paths.set(level, (paths.get(level) || "") + start);
    });
    const rows = Array.from({length: queries}, (_, row) => length - queries + row);
    return svg("svg", {viewBox: `0 0 ${length} ${length}`, class: "heat", "aria-hidden": "true", "shape-rendering": "crispEdges"},
      svg("path", {class: "bed", d: rows.map((row) => `M0 ${row}h${causal ? row + 1 : length}v1H0z`).join("")}),
      [...paths].map(([level, d]) => svg("path", {class: "cell", d, "fill-opacity": (level / levels).toFixed(2)})));
  }

  function answer({sample, window}) {
    const right = sample.prediction === window.answer;
    const rows = sample.candidates.filter((candidate) => finite(candidate.probability)).map((candidate) => html("div", null,
      html("dt", null, html("span", {class: "token"}, candidate.token)),
      html("dd", null, html("span", {class: "bar"}, html("i", {vars: {"--width": (candidate.probability * 100).toFixed(1) + "%"}})),
        html("span", {class: "amount"}, SF.percent(candidate.probability, 1)))));
    const kind = window.subtask === null ? "" : ` task-${window.subtask % 8}`;
    return html("div", null,
      html("h4", null, "Next token"),
      html("p", {class: "caption", style: "font-size:.9375rem"}, "Right answer ", html("span", {class: "token" + kind}, window.answer),
        window.subtask === null ? "" : ` by ${data.subtasks[window.subtask].name.toLowerCase()}`, "; predicted ",
        html("span", {class: "token"}, sample.prediction), " ",
        html("b", {class: right ? "right-text" : "wrong-text"}, right ? "✓ right" : "✗ wrong")),
      rows.length > 0 && html("dl", {class: "bars"}, rows));
  }

  function refresh() {
    const now = current();
    const {sample, map, window} = now;
    const samples = windowsOf(runs[state.run]);
    options(windowSelect.box, samples.map((item) => [item.window, `${item.window + 1}: ${data.windows[item.window].tokens.map((token) => token.text).join("").slice(0, 24)}`]), sample.window);
    const layers = [...new Set(sample.maps.map((item) => item.layer))];
    options(layerSelect.box, layers.map((layer) => [layer, String(layer + 1)]), map.layer);
    options(headSelect.box, sample.maps.filter((item) => item.layer === map.layer).map((item) => [item.head, String(item.head + 1)]), map.head);
    cursor = null;
    live.textContent = "";
    const {picture, top} = heat(now);
    const length = window.tokens.length;
    const partial = map.weights.length < length * length
      ? `This layer computes the last ${map.weights.length / length === 1 ? "query" : map.weights.length / length + " queries"} only. ` : "";
    stage.replaceChildren(
      html("h4", null, `Layer ${map.layer + 1}, head ${map.head + 1}`), picture,
      html("div", {class: "scale"}, "0", html("i", {"aria-hidden": "true"}), SF.short(+top.toFixed(3)), html("span", null, "attention weight")),
      html("p", {class: "caption"}, partial + "Rows are queries, columns are keys."), live);
    const most = Math.max(...layers.map((layer) => sample.maps.filter((item) => item.layer === layer).length));
    const grid = html("div", {class: "heads", role: "group", "aria-label": "All heads", vars: {"--heads": Math.min(most, 4)}},
      sample.maps.map((item, index) => html("button", {
        type: "button", "aria-pressed": String(index === state.map), "aria-label": `Layer ${item.layer + 1}, head ${item.head + 1}`,
        onclick: () => { state.map = index; refresh(); side.querySelector(".heads").children[index].focus(); },
      }, thumbnail(item, length, sample.causal), `L${item.layer + 1} H${item.head + 1}`)));
    side.replaceChildren(answer(now), html("div", {class: "all-heads"}, html("h4", null, "All heads"), grid));
  }
  refresh();
});
