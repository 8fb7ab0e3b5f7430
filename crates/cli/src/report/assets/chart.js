// What all sections share: reading the data, making elements, scales, axes,
// tooltips. Text only ever enters the page as text nodes.
const SF = (() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const sections = [];

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (name === "vars") for (const [key, item] of Object.entries(value)) element.style.setProperty(key, item);
      else element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child !== null && child !== undefined && child !== false) element.append(child);
    }
    return element;
  }
  const html = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  // Numbers
  const finite = (value) => typeof value === "number" && Number.isFinite(value);
  function short(value) {
    const size = Math.abs(value);
    for (const [unit, name] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size >= unit) return +(value / unit).toFixed(2) + name;
    }
    if (size !== 0 && size < 1e-3) return String(+value.toPrecision(2));
    return String(+value.toPrecision(4));
  }
  const exact = (value) => finite(value) ? (Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4))) : "–";
  const whole = (value) => Math.round(value).toLocaleString("en");
  const percent = (value, digits = 2) => finite(value) ? (value * 100).toFixed(digits) + " %" : "–";

  // Scales
  function linear(low, high, from, to) {
    const scale = (value) => from + (value - low) / (high - low || 1) * (to - from);
    scale.invert = (place) => low + (place - from) / (to - from || 1) * (high - low);
    scale.ticks = (count) => {
      const rough = (high - low) / Math.max(1, count);
      const power = 10 ** Math.floor(Math.log10(rough));
      const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= rough * 0.999);
      const ticks = [];
      for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(+(n * step).toPrecision(12));
      return ticks;
    };
    return scale;
  }
  function logarithmic(low, high, from, to) {
    const inner = linear(Math.log10(low), Math.log10(high), from, to);
    const scale = (value) => inner(Math.log10(value));
    scale.invert = (place) => 10 ** inner.invert(place);
    scale.ticks = (count) => {
      const decades = Math.log10(high / low);
      const factors = decades > count ? [1] : decades > 1.5 ? [1, 3] : [1, 2, 5];
      const ticks = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
        for (const factor of factors) {
          const tick = +(factor * 10 ** power).toPrecision(3);
          if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
        }
      }
      return ticks;
    };
    return scale;
  }

  // Axes with a light grid; `box` is {left, right, top, bottom} of the plot.
  function axes(root, box, x, y, options) {
    const density = options.density || 1;
    const columns = Math.max(2, Math.floor((box.right - box.left) / (density < 1 ? 36 : 72)));
    const rows = Math.max(2, Math.floor((box.bottom - box.top) / 55));
    for (const tick of y ? y.ticks(rows) : []) {
      const place = y(tick);
      root.append(
        svg("line", {class: "grid-line", x1: box.left, x2: box.right, y1: place, y2: place}),
        svg("text", {class: "axis", x: box.left - 8, y: place, dy: ".35em", "text-anchor": "end"}, options.yFormat(tick)));
    }
    root.append(svg("line", {class: "base-line", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom}));
    for (const tick of x.ticks(columns)) {
      const place = x(tick);
      root.append(
        svg("line", {class: "base-line", x1: place, x2: place, y1: box.bottom, y2: box.bottom + 4}),
        svg("text", {class: "axis", x: place, y: box.bottom + 18, "text-anchor": "middle"}, options.xFormat(tick)));
    }
    if (options.xLabel) {
      root.append(svg("text", {class: "axis title", x: box.right, y: box.bottom + 38, "text-anchor": "end"}, options.xLabel));
    }
    if (options.yLabel) {
      root.append(svg("text", {class: "axis title", x: 0, y: box.top - 14}, options.yLabel));
    }
  }

  // One tooltip for the page. Rows are [colour or null, name, value].
  const tip = html("div", {class: "tip", role: "presentation", "aria-hidden": "true", hidden: true});
  function showTip(place, title, rows) {
    tip.replaceChildren(html("strong", null, title), rows.length ? html("table", null, rows.map(([colour, name, value]) =>
      html("tr", null,
        html("td", null, colour && html("i", {vars: {"--dot": colour}}), name),
        html("td", null, value)))) : "");
    tip.hidden = false;
    const size = tip.getBoundingClientRect();
    const gap = 14;
    let left = place.x + gap;
    if (left + size.width > innerWidth - 8) left = Math.max(8, place.x - gap - size.width);
    let top = place.y + gap;
    if (top + size.height > innerHeight - 8) top = Math.max(8, place.y - gap - size.height);
    tip.style.transform = `translate(${left}px, ${top}px)`;
  }
  const hideTip = () => { tip.hidden = true; };

  // Controls
  function select(label, items, value, change) {
    const box = html("select", {onchange: () => change(box.value)}, items.map(([key, name]) => html("option", {value: key}, name)));
    box.value = String(value);
    return {element: html("label", {class: "control"}, label, box), box};
  }
  function segments(label, items, value, change) {
    const buttons = items.map(([key, name]) => html("button", {
      type: "button", "aria-pressed": String(key === value),
      onclick: () => { mark(key); change(key); },
    }, name));
    function mark(chosen) {
      buttons.forEach((button, index) => button.setAttribute("aria-pressed", String(items[index][0] === chosen)));
    }
    const group = html("div", {class: "segments", role: "group", "aria-label": label}, buttons);
    return {element: html("div", {class: "control"}, html("span", {"aria-hidden": "true"}, label), group), mark};
  }

  // Redraws with the true width, so that type keeps its size on any screen; in
  // the next frame, since a drawing may change the size that is being told.
  function fit(container, draw) {
    let width = 0;
    new ResizeObserver(() => requestAnimationFrame(() => {
      const now = Math.floor(container.clientWidth);
      if (now > 0 && now !== width) { width = now; draw(width); }
    })).observe(container);
    return () => { if (container.clientWidth > 0) { width = Math.floor(container.clientWidth); draw(width); } };
  }

  // Models: runs of one name, with one colour (and a dash past the palette).
  const models = [];
  for (const run of data.runs) {
    let model = models.find((candidate) => candidate.name === run.name);
    if (!model) {
      const index = models.length;
      model = {name: run.name, index, colour: `var(--series-${index % 8})`, dash: index < 8 ? null : "7 4", runs: []};
      models.push(model);
    }
    model.runs.push(run);
  }
  const swatch = (model) => svg("svg", {width: 22, height: 10, "aria-hidden": "true"},
    svg("line", {x1: 1, x2: 21, y1: 5, y2: 5, "stroke-width": 3, "stroke-dasharray": model.dash, style: `stroke:${model.colour}`}));

  // Buttons that hide and show models; `hidden` is a set of indices.
  function keys(shown, hidden, change) {
    return html("div", {class: "keys", role: "group", "aria-label": "Models shown"}, shown.map((model) => {
      const button = html("button", {type: "button", "aria-pressed": String(!hidden.has(model.index)), onclick: () => {
        if (hidden.has(model.index)) hidden.delete(model.index); else hidden.add(model.index);
        button.setAttribute("aria-pressed", String(!hidden.has(model.index)));
        change();
      }}, swatch(model), model.name);
      return button;
    }));
  }

  return {
    data, models, html, svg, finite, short, exact, whole, percent, linear, logarithmic, axes,
    showTip, hideTip, tip, select, segments, fit, keys, swatch,
    section: (id, start) => sections.push([id, start]),
    sections,
  };
})();
