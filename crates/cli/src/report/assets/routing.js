// The router over training, and one layer's heat maps at a time.
SF.section("routing", (root, part) => {
  const {data, html, finite} = SF;
  const {layers} = data.routing;
  const maps = [...root.querySelectorAll("[data-layer]")];
  const names = layers.map((layer) => layer.name);

  // Heat maps
  const chooser = part("layers");
  const show = (chosen) => maps.forEach((map, index) => { map.hidden = index !== chosen; });
  if (layers.length > 1) {
    const items = names.map((name, index) => [index, name]);
    chooser.append((layers.length <= 6
      ? SF.segments("Layer", items, 0, show)
      : SF.select("Layer", items, 0, (value) => show(+value))).element);
    show(0);
  } else chooser.hidden = true;

  // Over training
  const figure = root.querySelector("[data-role=curve]");
  if (!figure) return;
  const metrics = [
    {key: "entropy", name: "Router entropy", unit: "nats", format: SF.exact},
    {key: "max_over_mean", name: "Max / mean load", unit: "", format: SF.exact},
    {key: "dropped", name: "Dropped share", unit: "%", format: (value) => SF.percent(value / 100), scale: 100},
  ].filter((metric) => layers.some((layer) => layer.points[metric.key].some(finite)));
  let metric = metrics[0];
  const options = () => ({
    series: layers.map((layer, index) => ({
      name: layer.name, colour: `var(--series-${index % 8})`, dash: index < 8 ? null : "7 4", width: 2,
      points: layer.points.step.map((step, at) => [step, layer.points[metric.key][at]])
        .filter(([, value]) => value !== null).map(([step, value]) => [step, value * (metric.scale || 1)]),
    })).filter((line) => line.points.length > 0),
    xLabel: "Optimiser steps", yLabel: metric.name + (metric.unit ? ` (${metric.unit})` : ""),
    xFormat: SF.short, yFormat: SF.short, valueFormat: metric.format,
    xTitle: (x) => `Step ${SF.whole(x)}`, density: 1,
    label: `${metric.name} against optimiser steps`,
  });
  const chart = SF.lineChart(figure, options());
  const controls = part("controls");
  controls.append(SF.segments("Over training", metrics.map((item) => [item.key, item.name]), metric.key, (key) => {
    metric = metrics.find((item) => item.key === key);
    chart.update(options());
  }).element);
  figure.before(html("ul", {class: "legend"}, layers.map((layer, index) => html("li", null,
    SF.swatch({dash: index < 8 ? null : "7 4", colour: `var(--series-${index % 8})`}), layer.name))));
});
