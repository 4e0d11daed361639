// @ts-check
// The videos of all rows in step: order, filter, scores, and a big view of a row beside the base.
"use strict";

{
  const { make, part, find, Clock, Screen } = report;
  const [suite, cells, clips] = ["suite", "cells", "clips"].map(report.readIsland);
  const app = document.getElementById("player");
  const MORE = 6; // prompts shown at first, and more with each click
  const mean = (x) => x.reduce((sum, value) => sum + value, 0) / x.length;
  const deviation = (x) => Math.sqrt(mean(x.map((value) => (value - mean(x)) ** 2))) || 1;

  function startPlayer(/** @type {HTMLElement} */ app) {
    const rows = suite.rows.filter((row) => clips.sets[row.label]);
    const base = rows.find((row) => row.base);
    const trained = rows.filter((row) => !row.base);
    const seeds = [...new Set(trained.flatMap((row) => Object.keys(clips.sets[row.label])))];
    const metrics = new Map(suite.metrics.map((metric) => [metric.name, metric]));
    const { root, form, list, more, state, bar, previous, next } = part("player");
    const choices = form.elements;
    const screens = new Map();
    const visible = new Set();
    const clock = new Clock(() => visible.forEach((screen) => screen.draw()));
    let shown = [];

    const fields = () => new URLSearchParams(report.get("player"));
    const setField = (name, value) => {
      const changed = fields();
      changed.set(name, value);
      report.set("player", changed);
    };
    const metric = () => metrics.get(report.get("metric")) ?? metrics.get(suite.primary) ?? suite.metrics[0];
    const seed = () => seeds.find((each) => each === fields().get("seed")) ?? seeds[0];
    const video = () => Math.min(Number(fields().get("video")) || 0, clips.videos - 1);
    const scoresOf = (island, row, name) => island[row?.label]?.[row?.base ? "" : seed()]?.[name];
    const stored = (row, prompt) => row && find({ row: row.label, seed: seed(), prompt, video: video() });

    /** Gain of each trained row on each prompt: mean over its videos minus the base's; more is better. */
    function gainsOf(name) {
      const start = scoresOf(cells.rows, base, name);
      const values = trained.map((row) => scoresOf(cells.rows, row, name)).filter((x) => x && start);
      return values.map((x) => x.map((value, prompt) => metrics.get(name).sign * (value - start[prompt])));
    }
    /** What prompts are ordered by, largest first. @returns {(prompt: number) => number} */
    function keyOf(/** @type {string} */ order) {
      const gains = gainsOf(metric().name);
      const best = gains.reduce((one, other) => (one && mean(one) >= mean(other) ? one : other), null);
      const column = (prompt) => gains.map((row) => row[prompt]);
      const inUnits = (name) => gainsOf(name).map((row) => row.map((value) => value / deviation(row)));
      const [reward, gold] = order === "disagreement" && hacking ? [inUnits("trained"), inUnits("gold_overall")] : [];
      const keys = {
        gain: (prompt) => mean(column(prompt)),
        loss: (prompt) => -best[prompt],
        spread: (prompt) => Math.max(...column(prompt)) - Math.min(...column(prompt)),
        disagreement: reward && ((prompt) => mean(reward.map((row, i) => row[prompt] - gold[i][prompt]))),
      };
      return (best && keys[order]) ?? (() => 0);
    }
    /** The score of the shown video and its change to the base's, with decimals by the spread of the scores. */
    function makeScores(row, { name, sign }, prompt) {
      const [value, start] = [row, base].map((each) => scoresOf(cells.clips, each, name)?.[prompt]?.[video()]);
      if (value == null) return make("span", {}, "no score");
      const all = scoresOf(cells.clips, row, name).flat();
      const spread = Math.max(...all) - Math.min(...all) || 1;
      const digits = Math.min(6, Math.max(0, 2 - Math.floor(Math.log10(spread / 3))));
      const text = (x) => x.toFixed(digits).replace("-", "\u2212");
      const change = row.base || start == null ? 0 : Number((value - start).toFixed(digits));
      const signed = change > 0 ? `+${text(change)}` : text(change);
      const coloured = make("span", { className: change * sign > 0 ? "good" : "bad" }, signed);
      return make("span", { className: "scores" }, text(value), ...(change ? [" ", coloured] : []));
    }
    function makeClip(row, prompt) {
      const found = stored(row, prompt);
      const name = make("span", { className: "name", style: `border-color: ${row.colour}` }, row.title);
      if (!found) return make("div", { className: "clip" }, name, "no video");
      const key = [row.label, seed(), prompt, video()].join("/");
      if (!screens.has(key)) screens.set(key, new Screen(found, clock));
      const screen = screens.get(key);
      const parts = [screen.element, name, makeScores(row, metric(), prompt)];
      return make("button", { className: "clip", screen, onclick: () => openPair(row.label, prompt) }, ...parts);
    }

    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        for (const { screen } of /** @type {any} */ (target).querySelectorAll("button.clip")) {
          if (isIntersecting) visible.add(screen), screen.draw();
          else visible.delete(screen), screen.close();
        }
      }
    }, { rootMargin: "100px" });
    function render() {
      const { order = "list", zoom = "1", filter = "", count = MORE } = Object.fromEntries(fields());
      const values = { order, zoom, filter, metric: metric().name, seed: seed(), video: video() };
      for (const [name, value] of Object.entries(values)) choices[name].value = value;
      const words = filter.toLowerCase().split(/\s+/);
      const key = keyOf(order);
      const found = [...suite.prompts.keys()]
        .filter((prompt) => words.every((word) => suite.prompts[prompt].text.toLowerCase().includes(word)))
        .sort((one, other) => key(other) - key(one));
      shown = found.slice(0, Number(count) || MORE);
      observer.disconnect();
      visible.clear();
      list.replaceChildren(...shown.map((prompt) => make("li", {}, make("p", {}, suite.prompts[prompt].text),
        make("div", { className: "line" }, ...rows.map((row) => makeClip(row, prompt))))));
      list.style = `--rows: ${rows.length}; --zoom: ${Number(zoom) || 1}`;
      for (const line of list.children) observer.observe(line);
      more.hidden = shown.length === found.length;
      state.textContent = `${shown.length} of ${found.length} prompts`;
    }

    /** Focus the same column of the next or the previous prompt. */
    function move(/** @type {number} */ by) {
      const lines = [...list.querySelectorAll(".line")].map((line) => [...line.children]);
      const at = lines.findIndex((line) => line.includes(document.activeElement));
      lines[at < 0 ? 0 : at + by]?.[Math.max(0, lines[at]?.indexOf(document.activeElement) ?? 0)].focus();
    }
    /** The pair view: the base and a row, big. The base's own clip stands beside the first trained row. */
    function openPair(label, prompt) {
      const row = trained.find((each) => each.label === label) ?? trained[0];
      const sides = [base, row].filter((side) => stored(side, prompt));
      const view = part("pair");
      const context = view.difference.getContext("2d");
      const own = new Clock(async () => {
        await Promise.all(pair.map((screen) => screen.draw()));
        for (const [i, { canvas }] of pair.entries()) {
          context.globalCompositeOperation = i ? "difference" : "copy";
          context.drawImage(canvas, 0, 0);
        }
      });
      const pair = sides.map((side) => new Screen(stored(side, prompt), own, true));
      Object.assign(view.difference, { width: clips.width, height: clips.height });
      const captions = sides.map((side) => make("figcaption", {}, side.title));
      view.figures.prepend(...pair.map(({ element }, i) => make("figure", {}, element, captions[i])));
      view.heads.append(...sides.map((side) => make("th", { scope: "col" }, side.title)));
      view.scores.append(...suite.metrics.map((each) => make("tr", {}, make("th", { scope: "row" }, each.label),
        ...sides.map((side) => make("td", {}, makeScores(side, each, prompt))))));
      view.text.textContent = suite.prompts[prompt].text;
      view.note.textContent = `Seed ${seed()}, video ${video()}`;
      view.bar.replaceWith(own.bar.root);
      [view.previous, view.next].forEach((button, i) => {
        const other = shown[shown.indexOf(prompt) + 2 * i - 1];
        button.disabled = other === undefined;
        button.onclick = () => (view.root.close(), openPair(label, other));
      });
      view.root.onclose = () => {
        own.step(0);
        pair.forEach((screen) => screen.close());
        view.root.remove();
      };
      document.body.append(view.root);
      view.root.showModal();
      clock.step(0);
      own.step(clock.frame);
    }
    report.openPair = openPair;

    const hacking = metrics.has("trained") && metrics.has("gold_overall");
    choices.order.querySelector("[value=disagreement]").disabled = !hacking;
    const fill = (name, values, texts = values) => {
      choices[name].append(...values.map((value, i) => new Option(texts[i], value)));
      choices[name].parentElement.hidden = values.length < 2;
    };
    fill("metric", [...metrics.keys()], suite.metrics.map((each) => each.label));
    fill("seed", seeds);
    fill("video", [...Array(clips.videos).keys()]);
    form.onsubmit = (event) => event.preventDefault();
    form.oninput = ({ target: { name, value } }) => (name === "metric" ? report.set : setField)(name, value);
    more.onclick = () => setField("count", shown.length + MORE);
    previous.onclick = () => move(-1);
    next.onclick = () => move(1);
    bar.replaceWith(clock.bar.root);
    app.append(root);
    app.parentElement?.classList.add("alive");
    report.listen("player", render);
    report.listen("metric", render);
    render();
    clock.step(0);
  }
  if (app && clips?.kind) startPlayer(app);
}
