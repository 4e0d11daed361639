// @ts-check
// The difference of the records of two runs.
"use strict";

{
  const { make } = report;
  const place = document.getElementById("run-cards");
  const runs = report.readIsland("runs") ?? [];
  const name = (run) => `${run.suite}: ${run.row}${run.seed === null ? "" : `, seed ${run.seed}`}`;

  /** Dotted keys to values. @returns {[string, string][]} */
  const flat = (value, key = "") =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? Object.entries(value).flatMap(([part, each]) => flat(each, key ? `${key}.${part}` : part))
      : [[key, JSON.stringify(value)]];

  function show(one, other, body) {
    const [left, right] = [new Map(flat(one)), new Map(flat(other))];
    const keys = [...new Set([...left.keys(), ...right.keys()])].filter((key) => left.get(key) !== right.get(key));
    const line = (key) => {
      const cells = [left, right].map((side) => make("td", { className: "left" }, side.get(key) ?? "not there"));
      return make("tr", {}, make("th", { scope: "row" }, key), ...cells);
    };
    body.replaceChildren(...keys.map(line));
  }

  if (place && runs.length > 1) {
    const body = make("tbody");
    const menus = [0, 1].map((chosen) => {
      const options = runs.map((run, i) => make("option", { value: String(i), selected: i === chosen }, name(run)));
      const menu = make("select", {}, ...options);
      menu.addEventListener("change", change);
      return menu;
    });
    function change() {
      show(runs[Number(menus[0].value)], runs[Number(menus[1].value)], body);
    }
    change();
    const heads = ["Setting", "first run", "second run"].map((text) => make("th", { scope: "col" }, text));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body);
    const wrap = make("div", { className: "wrap", tabIndex: 0, role: "region", ariaLabel: "Difference of two runs" }, table);
    const labels = ["First run", "Second run"].map((text, i) => make("label", {}, `${text} `, menus[i]));
    const summary = make("summary", {}, "Difference of two runs: settings, digests, times");
    place.append(make("details", {}, summary, make("p", { className: "choices" }, ...labels), wrap));
  }
}
