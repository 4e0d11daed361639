// @ts-check
// Tables: sorting by their heads, choice of columns and rows, copies for papers, and the videos behind the heat map.
"use strict";

{
  const { make, part } = report;
  const LATEX = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2212": "$-$",
    "\u00b1": "$\\pm$", "\u00d7": "$\\times$", "\u2191": "$\\uparrow$", "\u2193": "$\\downarrow$",
    "\u2020": "$\\dagger$", ...Object.fromEntries([..."{}$&#%_"].map((mark) => [mark, `\\${mark}`])) };
  const FORMATS = {
    LaTeX: {
      escape: (text) => [...text.replace(/(?<![\w.])-(?=[\d.])/g, "\u2212")].map((mark) => LATEX[mark] ?? mark).join(""),
      bold: (text) => `\\textbf{${text}}`,
      join: ([head, ...lines], sides) => ["% needs booktabs", `\\begin{tabular}{${sides.join("")}}`, "\\toprule",
        `${head.join(" & ")} \\\\`, "\\midrule", ...lines.map((line) => `${line.join(" & ")} \\\\`), "\\bottomrule",
        "\\end{tabular}\n"].join("\n"),
    },
    Markdown: {
      escape: (text) => text.replace(/[\\|*_`<[]/g, "\\$&"),
      bold: (text) => `**${text}**`,
      join: ([head, ...lines], sides) => [head, sides.map((side) => (side === "l" ? ":--" : "--:")), ...lines]
        .map((line) => `| ${line.join(" | ")} |\n`).join(""),
    },
    CSV: { escape: (text) => text, bold: (text) => text, join: report.csv },
  };
  const headsOf = (/** @type {any} */ table) => [...table.tHead.rows[0].cells];

  /** What is shown of a table, in one of the formats. */
  function write(/** @type {HTMLTableElement} */ table, { escape, bold, join }) {
    const text = (node) => {
      if (node.nodeType === Node.TEXT_NODE) return escape(node.data.replace(/\s+/g, " "));
      const inner = [...node.childNodes].map(text).join("");
      return node.tagName === "STRONG" ? bold(inner) : inner;
    };
    const shown = (elements) => [...elements].filter((element) => !element.hidden);
    const sides = shown(headsOf(table)).map((head) => (head.dataset.sort === "number" ? "r" : "l"));
    return join(shown(table.rows).map((row) => shown(row.cells).map((cell) => text(cell).trim())), sides);
  }

  /** Put a text into the clipboard; where the browser forbids it, show the text. */
  async function copy(text, status) {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    if (done) return void (status.textContent = "copied");
    const { root, area } = part("copy");
    area.value = text;
    root.onclose = () => root.remove();
    document.body.append(root);
    root.showModal();
    area.select();
  }

  function startTable(/** @type {HTMLElement} */ place) {
    const table = /** @type {HTMLTableElement} */ (document.getElementById(String(place.dataset.table)));
    const heads = headsOf(table);
    const rows = [...table.tBodies[0].rows];
    const { root, copies, columns, filter, status } = part("tools");
    const sorts = () => report.get("sort").split(",").filter(Boolean).map((text) => text.split(":"));

    function sort() {
      const [, column, direction] = sorts().find(([id]) => id === table.id) ?? [];
      const value = (row) => {
        const { dataset, textContent } = row.cells[column];
        return heads[column].dataset.sort === "text" ? textContent : Number(dataset.value || NaN);
      };
      const sign = direction === "descending" ? -1 : 1;
      const lacks = (x) => Number(Number.isNaN(x)); // a cell without a number comes last, either way
      const compare = (x, y) => lacks(x) - lacks(y) || sign * (Number(x > y) - Number(x < y));
      const sorted = rows.map((row) => [heads[column] ? value(row) : 0, row]).sort(([x], [y]) => compare(x, y));
      table.tBodies[0].append(...sorted.map(([, row]) => row));
      heads.forEach((head, i) => head.setAttribute("aria-sort", i === Number(column) ? direction : "none"));
    }
    heads.forEach((head, column) => {
      const [first, second] = head.dataset.sort === "text" ? ["ascending", "descending"] : ["descending", "ascending"];
      const onclick = () => {
        const next = { none: first, [first]: second }[String(head.getAttribute("aria-sort"))];
        const others = sorts().filter(([id]) => id !== table.id);
        const sorted = next ? [...others, [table.id, column, next]] : others;
        report.set("sort", sorted.map((each) => each.join(":")).join(","));
      };
      if (head.dataset.sort) head.replaceChildren(make("button", { className: "sort", onclick }, ...head.childNodes));
      const onchange = ({ target }) => [...table.rows].forEach((row) => (row.cells[column].hidden = !target.checked));
      const box = make("input", { type: "checkbox", checked: true, onchange });
      if (column) columns.append(make("label", {}, box, String(head.textContent)));
    });
    for (const [name, format] of Object.entries(FORMATS)) {
      copies.append(make("button", { onclick: () => copy(write(table, format), status) }, name));
    }
    filter.oninput = () => {
      const words = filter.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    };
    filter.hidden = rows.length < 6;
    place.append(root);
    report.listen("sort", sort);
    sort();
  }

  for (const place of document.querySelectorAll(".tools[data-table]")) startTable(/** @type {HTMLElement} */ (place));
  for (const cell of document.querySelectorAll("#prompts td[data-row][data-prompt]")) {
    const { row, prompt } = /** @type {HTMLElement} */ (cell).dataset;
    const onclick = () => report.openPair(row, Number(prompt));
    if (report.openPair) cell.replaceChildren(make("button", { className: "cell", onclick }, ...cell.childNodes));
  }
}
