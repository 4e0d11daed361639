// @ts-check
// The charts, drawn anew when they come into view, so that they can be hovered; the curves with other scores and axes.
"use strict";

{
  const { make } = report;
  const [charts, suite, curves] = ["charts", "suite", "curves"].map(report.readIsland);
  const titles = Object.fromEntries((suite?.rows ?? []).map((row) => [row.label, row.title]));
  const AXES = { update: "updates", nfe_rollout: "rollout NFE", reward_calls: "reward calls", minutes: "minutes of training" };
  const narrow = matchMedia("(max-width: 48rem)");
  const shown = { level: false, seeds: false };
  const views = new Map();

  /** One line per seed, row, score and point of the curves. */
  const seedLines = () =>
    curves.series.flatMap((each) =>
      each.gain.map((gain, i) => {
        const axes = Object.fromEntries(Object.entries(curves.x).map(([name, values]) => [name, values[i]]));
        const { seed, score } = each;
        return { ...axes, row: titles[each.row], seed, score, gain, level: each.level[i], minutes: each.minutes[i] };
      }),
    );

  /** The panels of one score over one axis, from the panels of the primary score. */
  function chosenCurves(spec) {
    const metric = suite.metrics.find((each) => each.name === report.get("metric"));
    const axis = report.get("x") in AXES ? report.get("x") : "update";
    if (!metric && axis === "update" && !shown.level && !shown.seeds) return spec;
    const name = metric?.name ?? suite.primary;
    const value = shown.level ? "level" : "gain";
    const first = spec.concat.filter((panel) => panel.transform[0].filter.equal === spec.concat[0].transform[0].filter.equal);
    const concat = first.map((panel) => {
      const [band, line, point] = panel.layer;
      for (const layer of [line, point]) Object.assign(layer.encoding.y, { field: value, title: shown.level ? "score" : "gain over the base" });
      Object.assign(band.encoding, { y: { ...band.encoding.y, field: `${value}_lo` }, y2: { field: `${value}_hi` } });
      band.transform[0].filter = `isValid(datum.${value}_lo)`;
      Object.assign(panel.encoding.x, { field: axis, title: AXES[axis] });
      panel.transform[0].filter.equal = name;
      panel.title = suite.metrics.find((each) => each.name === name).label;
      if (first.length === 1 && !narrow.matches) panel.width = 760;
      const { y, color } = line.encoding;
      const single = {
        data: { values: seedLines().filter((each) => each.score === name) },
        transform: [panel.transform[1]],
        mark: { type: "line", strokeWidth: 1, opacity: 0.45 },
        encoding: { y, color, detail: { field: "seed", type: "nominal" } },
      };
      return { ...panel, layer: [band, ...(shown.seeds ? [single] : []), line, point] };
    });
    return { ...spec, concat };
  }

  async function draw(/** @type {HTMLElement} */ figure) {
    const name = figure.dataset.chart ?? "";
    const { datasets, wide, narrow: small } = charts[name];
    const spec = structuredClone(narrow.matches ? small : wide);
    const live = views.get(name)?.live ?? make("div", { className: "live" });
    const shape = name === "curves" ? chosenCurves(spec) : spec;
    const view = await vegaEmbed(live, { ...shape, datasets }, { ast: true, actions: false, renderer: "svg", tooltip: { theme: "custom" } });
    views.get(name)?.view.finalize();
    views.set(name, { live, view });
    if (!live.parentNode) figure.querySelector(".drawn")?.after(live);
    live.querySelector("svg")?.setAttribute("aria-hidden", "true"); // the text is that of the picture that stands in print
    figure.classList.add("is-live");
  }

  function startChoices() {
    const place = document.getElementById("curve-choices");
    const figure = /** @type {HTMLElement} */ (document.querySelector('[data-chart="curves"]'));
    if (!place || !curves.series.length) return;
    const redraw = () => draw(figure);
    const scores = new Set(curves.series.map((each) => each.score));
    const select = (label, key, options) => {
      const menu = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
      const show = () => (menu.value = options.some(([value]) => value === report.get(key)) ? report.get(key) : "");
      menu.addEventListener("change", () => report.set(key, menu.value));
      report.listen(key, () => (show(), redraw()));
      show();
      return make("label", {}, `${label} `, menu);
    };
    const box = (label, key) => {
      const input = make("input", { type: "checkbox" });
      input.addEventListener("change", () => ((shown[key] = input.checked), redraw()));
      return make("label", {}, input, ` ${label}`);
    };
    const metrics = suite.metrics.filter((each) => scores.has(each.name)).map((each) => [each.name, each.label]);
    const axes = Object.entries(AXES).map(([name, text]) => [name === "update" ? "" : name, text]);
    place.append(select("Score", "metric", [["", "main scores"], ...metrics]), select("Axis", "x", axes));
    place.append(box("level instead of gain", "level"), box("single seeds", "seeds"));
  }

  // Vega is a module: it runs after this script, and before the page counts as loaded.
  addEventListener("DOMContentLoaded", () => {
    if (!charts || typeof vegaEmbed === "undefined") return;
    startChoices();
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        draw(/** @type {HTMLElement} */ (target));
      }
    });
    for (const figure of document.querySelectorAll("[data-chart]")) observer.observe(figure);
    narrow.addEventListener("change", () => [...document.querySelectorAll(".is-live")].forEach((figure) => draw(/** @type {HTMLElement} */ (figure))));
  });
}
