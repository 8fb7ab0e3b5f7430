// Final scores as dots with error bars, one row for each subtask.
SF.section("results", (root, part) => {
  const {data, models, html, svg, finite} = SF;
  const host = part("scores");
  if (!host) return;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const rows = [...data.subtasks.map((subtask, task) => ({name: subtask.name, of: (scores) => scores.subtasks[task], reference: (r) => r.subtasks[task]})),
    {name: "All", of: (scores) => scores.overall, reference: (r) => r.overall}];
  const scored = models.filter((model) => model.runs.some((run) => run.scores));
  const cells = rows.map((row) => scored.map((model) => {
    const scores = model.runs.filter((run) => run.scores).map((run) => row.of(run.scores)).filter((score) => finite(score.accuracy));
    if (scores.length === 0) return null;
    const values = scores.map((score) => score.accuracy);
    const centre = mean(values);
    const error = values.length > 1
      ? Math.sqrt(values.reduce((sum, value) => sum + (value - centre) ** 2, 0) / (values.length - 1))
      : scores[0].standard_error;
    return {model, centre, error, values};
  }));
  const hidden = new Set();
  const figure = html("figure", {class: "chart"});
  host.append(html("h3", null, "Accuracy by subtask"));
  if (scored.length > 1) host.append(SF.keys(scored, hidden, () => redraw()));
  host.append(figure);

  function draw(width) {
    const shown = scored.filter((model) => !hidden.has(model.index));
    const pitch = Math.max(5, Math.min(12, 60 / Math.max(1, shown.length)));
    const band = Math.max(34, pitch * shown.length + 16);
    const longest = Math.max(...rows.map((row) => row.name.length));
    const box = {left: Math.min(Math.max(110, longest * 8 + 10), width * 0.34), right: width - 16, top: 8, bottom: 8 + band * rows.length};
    const height = box.bottom + 46;
    const all = cells.flat().filter((cell) => cell && !hidden.has(cell.model.index)).map((cell) => cell.centre - (cell.error || 0));
    const low = Math.max(0, Math.floor((Math.min(1, ...all) - 0.02) * 10) / 10);
    const x = SF.linear(low * 100, 100, box.left, box.right);
    const chart = svg("svg", {width, height, viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": "Accuracy of each model by subtask; the table above has the figures."});
    for (const tick of x.ticks(width / 110)) {
      chart.append(svg("line", {class: "grid-line", x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom}));
    }
    SF.axes(chart, box, x, null, {xFormat: SF.short, xLabel: "Accuracy (%)"});
    rows.forEach((row, index) => {
      const middle = box.top + band * (index + 0.5);
      if (index > 0) chart.append(svg("line", {class: "grid-line", x1: 0, x2: box.right, y1: box.top + band * index, y2: box.top + band * index}));
      chart.append(svg("text", {class: "axis", x: 0, y: middle, dy: ".35em", style: `fill:var(--ink);font-size:14px;font-weight:${row.name === "All" ? 620 : 450}`}, row.name));
      for (const reference of data.references) {
        const value = row.reference(reference);
        if (!finite(value) || value < low) continue;
        chart.append(svg("line", {class: "mark-line", x1: x(value * 100), x2: x(value * 100), y1: middle - band / 2 + 5, y2: middle + band / 2 - 5},
          svg("title", null, `${reference.name}: ${SF.percent(value)}`)));
      }
      const drawn = cells[index].filter((cell) => cell && !hidden.has(cell.model.index));
      drawn.forEach((cell, rank) => {
        const y = middle + (rank - (drawn.length - 1) / 2) * pitch;
        const spread = finite(cell.error) ? cell.error : 0;
        const right = Math.min(100, (cell.centre + spread) * 100);
        const group = svg("g", {style: `stroke:${cell.model.colour};fill:${cell.model.colour}`},
          svg("line", {x1: box.left, x2: x(cell.centre * 100), y1: y, y2: y, "stroke-opacity": 0.22}),
          svg("line", {x1: x(Math.max(low, cell.centre - spread) * 100), x2: x(right), y1: y, y2: y, "stroke-width": 2}),
          svg("circle", {cx: x(cell.centre * 100), cy: y, r: Math.min(4.5, pitch * 0.45), stroke: "none", "stroke-width": 0}),
          svg("rect", {x: box.left, width: Math.max(0, box.right - box.left), y: y - pitch / 2, height: pitch, fill: "transparent", style: "fill:transparent;stroke:none"}));
        const seeds = cell.values.length;
        const rowsOfTip = [[cell.model.colour, row.name, `${SF.percent(cell.centre)}${finite(cell.error) ? " ± " + (cell.error * 100).toFixed(2) : ""}`]];
        if (seeds > 1) rowsOfTip.push([null, `${seeds} seeds`, cell.values.map((value) => (value * 100).toFixed(1)).join(", ")]);
        group.addEventListener("pointermove", (event) => SF.showTip({x: event.clientX, y: event.clientY}, cell.model.name, rowsOfTip));
        group.addEventListener("pointerleave", SF.hideTip);
        chart.append(group);
      });
    });
    figure.replaceChildren(chart);
  }
  const redraw = SF.fit(figure, draw);
  if (data.references.length) {
    host.append(html("p", {class: "caption"}, "Dashed, where on the scale: " + data.references.map((reference) => reference.name).join("; ") + "."));
  }
});
