// Learning curves by metric, and one small chart per subtask.
SF.section("curves", (root, part) => {
  const {data, models, html, finite} = SF;
  const number = SF.exact;
  const ratio = (value) => SF.percent(value / 100);
  const scaled = (values) => values && values.map((value) => value === null ? null : value * 100);
  const error = (values) => values && values.map((value) => value === null ? null : 100 - value * 100);
  const metrics = [
    {key: "accuracy", name: "Validation accuracy", unit: "%", of: (p) => scaled(p.accuracy), format: ratio, percent: true},
    {key: "error", name: "Validation error", unit: "%", of: (p) => error(p.accuracy), format: ratio, log: true},
    ...data.subtasks.map((subtask, task) => ({
      key: "task" + task, name: `Accuracy: ${subtask.name}`, unit: "%", of: (p) => scaled(p.subtasks[task]), format: ratio, percent: true, task,
    })),
    {key: "exact", name: "Right answers in training", unit: "%", of: (p) => scaled(p.exact), format: ratio, percent: true},
    {key: "reward", name: "Mean reward", unit: "", of: (p) => p.reward, format: number},
    {key: "divergence", name: "Divergence from the base", unit: "nats an answer", of: (p) => p.divergence, format: number},
    {key: "validation_loss", name: "Validation loss", unit: "nats", of: (p) => p.validation_loss, format: number},
    {key: "train_loss", name: "Training loss", unit: "nats", of: (p) => p.train_loss, format: number, noisy: true},
    {key: "gradient_norm", name: "Gradient norm", unit: "before clipping", of: (p) => p.gradient_norm, format: number, noisy: true},
    {key: "learning_rate", name: "Learning rate", unit: "", of: (p) => p.learning_rate, format: number},
    {key: "tokens_per_second", name: "Training speed", unit: "tokens/s", of: (p) => p.tokens_per_second, format: SF.short, noisy: true},
  ].filter((metric) => data.runs.some((run) => (metric.of(run.points) || []).some(finite)));
  const state = {metric: metrics[0], axis: "step", log: false, smooth: 0.9};
  const hidden = new Set();
  const guess = data.references.map((reference) => ({...reference}));

  // Mean over seeds where all have a value, so early stops do not bend it;
  // not finite where one of them is not.
  function mean(lines) {
    const sums = new Map();
    for (const line of lines) for (const [x, y] of line) {
      const sum = sums.get(x) || [0, 0];
      sums.set(x, [sum[0] + 1, sum[1] + Number(y)]);
    }
    return [...sums].filter(([, sum]) => sum[0] === lines.length).map(([x, sum]) => [x, sum[1] / sum[0]]).sort((a, b) => a[0] - b[0]);
  }
  // Exponential average with the start corrected.
  function smooth(line, keep) {
    let sum = 0, weight = 0;
    return line.map(([x, y]) => {
      if (!finite(y)) return [x, y];
      sum = keep * sum + (1 - keep) * y;
      weight = keep * weight + (1 - keep);
      return [x, sum / weight];
    });
  }
  // Steps at which a metric was not taken (null) are skipped; a value that was
  // not finite ("NaN") stays and breaks the line.
  function points(run, metric) {
    const values = metric.of(run.points) || [];
    return run.points[state.axis].map((x, index) => [x, values[index] ?? null]).filter(([, y]) => y !== null);
  }
  function lines(metric, thin) {
    const series = [];
    for (const model of models) {
      if (hidden.has(model.index)) continue;
      const look = {name: model.name, colour: model.colour, dash: model.dash};
      const raw = model.runs.map((run) => points(run, metric)).filter((line) => line.some(([, y]) => finite(y)));
      if (raw.length === 0) continue;
      const averaged = raw.length > 1 ? mean(raw) : raw[0];
      const smoothing = metric.noisy && state.smooth > 0;
      if (raw.length > 1 || smoothing) {
        for (const line of raw) series.push({...look, points: line, width: 1, opacity: smoothing ? 0.18 : 0.35, quiet: true});
      }
      series.push({...look, points: smoothing ? smooth(averaged, state.smooth) : averaged, width: thin ? 1.75 : 2.25});
    }
    return series;
  }
  function marks(metric) {
    const out = [];
    if (data.target && metric.key === "accuracy") out.push({y: data.target * 100, label: `target ${SF.short(data.target * 100)} %`});
    if (data.target && metric.key === "error") out.push({y: 100 - data.target * 100, label: `target ${SF.short(100 - data.target * 100)} %`});
    for (const reference of guess) {
      const value = metric.task === undefined ? (metric.key === "accuracy" || metric.key === "exact" ? reference.overall : null) : reference.subtasks[metric.task];
      if (finite(value)) out.push({y: value * 100, label: reference.name});
    }
    return out;
  }
  function options(metric, small) {
    const series = lines(metric, small);
    const log = !small && state.log;
    const lowest = Math.min(...series.flatMap((line) => line.points.map((point) => point[1]).filter(finite)), 100);
    const unit = metric.unit ? ` (${metric.unit})` : "";
    return {
      series, log, marks: small ? marks(metric).map((mark) => ({y: mark.y})) : marks(metric),
      xLabel: small ? "" : state.axis === "step" ? "Optimiser steps" : "Training tokens",
      yLabel: small ? "" : metric.name + unit + (log ? ", log scale" : ""),
      xFormat: SF.short, yFormat: SF.short, valueFormat: metric.format,
      xTitle: (x) => state.axis === "step" ? `Step ${SF.whole(x)}` : `${SF.short(x)} tokens`,
      yDomain: metric.percent && !log ? [small ? 0 : Math.max(0, Math.floor(lowest / 10) * 10), 100] : null,
      height: small ? 170 : null, density: small ? 0.99 : 1,
      label: `${metric.name}${unit} against ${state.axis === "step" ? "optimiser steps" : "training tokens"}`,
    };
  }

  const main = part("main");
  const chart = SF.lineChart(main, options(state.metric));
  const multiples = [];
  function refresh() {
    chart.update(options(state.metric));
    for (const {metric, view} of multiples) view.update(options(metric, true));
    smoothing.element.hidden = !state.metric.noisy;
  }
  const scale = SF.segments("Scale", [[false, "Linear"], [true, "Log"]], state.log, (log) => { state.log = log; refresh(); });
  const smoothing = SF.select("Smoothing", [["0", "None"], ["0.6", "Light"], ["0.9", "Strong"]], state.smooth, (value) => { state.smooth = +value; refresh(); });
  const chooser = SF.select("Metric", metrics.map((metric) => [metric.key, metric.name]), state.metric.key, (key) => {
    state.metric = metrics.find((metric) => metric.key === key);
    state.log = Boolean(state.metric.log);
    scale.mark(state.log);
    refresh();
  });
  const controls = part("controls");
  controls.append(chooser.element);
  if (data.runs.some((run) => run.points.tokens.some((tokens) => tokens > 0))) {
    controls.append(SF.segments("Horizontal axis", [["step", "Steps"], ["tokens", "Tokens"]], state.axis, (axis) => { state.axis = axis; refresh(); }).element);
  }
  controls.append(scale.element, smoothing.element);
  const learners = models.filter((model) => model.runs.some((run) => run.points.step.length > 0));
  if (learners.length > 1) main.before(SF.keys(learners, hidden, refresh));

  const tasks = metrics.filter((metric) => metric.task !== undefined);
  if (tasks.length > 0) {
    const grid = html("div", {class: "multiples"});
    const guessing = guess.length ? " Dashed: " + guess.map((reference) => reference.name).join("; ") + "." : "";
    part("subtasks").append(html("h3", null, "By subtask"), html("p", {class: "caption"}, "Validation accuracy in percent." + guessing), grid);
    for (const metric of tasks) {
      const figure = html("figure", {class: "chart"});
      grid.append(html("div", null, html("h4", null, data.subtasks[metric.task].name), figure));
      multiples.push({metric, view: SF.lineChart(figure, options(metric, true))});
    }
  }
  refresh();
});
