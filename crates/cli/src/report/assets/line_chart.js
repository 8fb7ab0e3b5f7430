// A line chart with a crosshair for pointer and arrow keys.
//
// `options`: series [{name, colour, dash, width, opacity, quiet, points: [[x, y], …]}]
// where a y that is not finite is a gap, xLabel, yLabel, xFormat, yFormat, xTitle (of the tooltip),
// valueFormat, yDomain, log, marks [{y, label}], height, density, label.
SF.lineChart = (container, first) => {
  const {html, svg, finite} = SF;
  let options = first;
  let cursor = null;
  const live = html("span", {class: "hidden-text", "aria-live": "polite"});

  function extent(values) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return low <= high ? [low, high] : [0, 1];
  }
  function domain(values) {
    let [low, high] = options.yDomain || extent(values);
    if (options.log) return [low / 1.12, high * 1.12];
    if (high - low < 1e-12) { low -= Math.abs(low) * 0.05 || 0.5; high += Math.abs(high) * 0.05 || 0.5; }
    if (!options.yDomain) {
      if (low > 0 && low < (high - low) * 0.6) low = 0;
      const room = (high - low) * 0.05;
      high += room;
      if (low !== 0) low -= room;
    }
    return [low, high];
  }

  function draw(width) {
    const usable = ([x, y]) => finite(x) && finite(y) && (!options.log || y > 0);
    const series = options.series.map((line) => ({...line, kept: line.points.filter(usable)}));
    const height = options.height || Math.max(280, Math.min(420, width * 0.5));
    const box = {left: options.density < 1 ? 40 : 54, right: width - 12, top: options.yLabel ? 30 : 10, bottom: height - (options.xLabel ? 46 : 26)};
    const [left, right] = extent(series.flatMap((line) => line.kept.map((point) => point[0])));
    const [low, high] = domain(series.flatMap((line) => line.kept.map((point) => point[1])));
    const x = SF.linear(Math.min(0, left), right, box.left, box.right);
    const y = (options.log ? SF.logarithmic : SF.linear)(low, high, box.bottom, box.top);
    const root = svg("svg", {
      width, height, viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "group",
      "aria-roledescription": "line chart",
      "aria-label": options.label + ". Use the arrow keys to read values.",
    });
    SF.axes(root, box, x, y, options);
    for (const mark of options.marks || []) {
      if (mark.y < low || mark.y > high) continue;
      const place = y(mark.y);
      root.append(svg("line", {class: "mark-line", x1: box.left, x2: box.right, y1: place, y2: place}));
      if (mark.label) root.append(svg("text", {class: "mark-text", x: box.right, y: place + 15, "text-anchor": "end"}, mark.label));
    }
    for (const line of series) {
      // A value that is not finite breaks the line.
      const path = [];
      let pen = false;
      for (const point of line.points) {
        if (!usable(point)) { pen = false; continue; }
        const place = Math.max(box.top - 2, Math.min(box.bottom + 2, y(point[1])));
        path.push(`${pen ? "L" : "M"}${x(point[0]).toFixed(1)} ${place.toFixed(1)}`);
        pen = true;
      }
      root.append(svg("path", {
        class: "curve", d: path.join(""), "stroke-width": line.width || 2, "stroke-opacity": line.opacity,
        "stroke-dasharray": line.dash, style: `stroke:${line.colour}`,
      }));
      if (line.kept.length === 1) {
        root.append(svg("circle", {cx: x(line.kept[0][0]), cy: y(line.kept[0][1]), r: 3, style: `fill:${line.colour}`}));
      }
    }
    const overlay = svg("g", {"pointer-events": "none"});
    root.append(overlay);

    const read = series.filter((line) => !line.quiet && line.kept.length > 0);
    const stops = [...new Set(read.flatMap((line) => line.kept.map((point) => point[0])))].sort((a, b) => a - b);
    const nearest = (values, value, of) => values.reduce((best, next) => Math.abs(of(next) - value) < Math.abs(of(best) - value) ? next : best);
    function point(at, place, speak) {
      overlay.replaceChildren(svg("line", {class: "cross", x1: x(at), x2: x(at), y1: box.top, y2: box.bottom}));
      const reach = (right - left) * 0.04;
      const rows = read.map((line) => ({line, hit: nearest(line.kept, at, (p) => p[0])}))
        .filter(({hit}) => Math.abs(hit[0] - at) <= reach)
        .sort((a, b) => b.hit[1] - a.hit[1]);
      for (const {line, hit} of rows) {
        overlay.append(svg("circle", {cx: x(hit[0]), cy: y(hit[1]), r: 3.5, style: `fill:${line.colour};stroke:var(--paper)`, "stroke-width": 1.5}));
      }
      const title = options.xTitle(at);
      SF.showTip(place, title, rows.map(({line, hit}) => [line.colour, line.name, options.valueFormat(hit[1])]));
      if (speak) live.textContent = title + ": " + rows.map(({line, hit}) => `${line.name} ${options.valueFormat(hit[1])}`).join("; ");
    }
    function leave() { overlay.replaceChildren(); SF.hideTip(); }
    if (stops.length > 0) {
      root.addEventListener("pointermove", (event) => {
        const frame = root.getBoundingClientRect();
        const at = nearest(stops, x.invert((event.clientX - frame.left) * width / frame.width), (p) => p);
        cursor = stops.indexOf(at);
        point(at, {x: event.clientX, y: event.clientY});
      });
      root.addEventListener("pointerleave", leave);
      root.addEventListener("blur", leave);
      root.addEventListener("keydown", (event) => {
        const stride = event.shiftKey ? Math.max(1, Math.round(stops.length / 10)) : 1;
        const now = cursor === null ? stops.length - 1 : Math.min(cursor, stops.length - 1);
        const next = {ArrowLeft: now - stride, ArrowRight: cursor === null ? 0 : now + stride, Home: 0, End: stops.length - 1}[event.key];
        if (event.key === "Escape") leave();
        if (next === undefined) return;
        event.preventDefault();
        cursor = Math.max(0, Math.min(stops.length - 1, next));
        const frame = root.getBoundingClientRect();
        point(stops[cursor], {x: frame.left + x(stops[cursor]) * frame.width / width, y: frame.top + 24}, true);
      });
    }
    container.replaceChildren(root, live);
  }

  const redraw = SF.fit(container, draw);
  return {update(next) { options = next; SF.hideTip(); redraw(); }};
};
