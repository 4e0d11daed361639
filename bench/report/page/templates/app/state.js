// @ts-check
// The page's data, the state in its link (#metric=overall&votes=7), and the making of elements.
"use strict";

/** What the scripts of the page share; `var`, so that it is `window.report` too. @type {Record<string, any>} */
var report = {};

{
  const listeners = [];
  // A link without "=" leads to a section and leaves the state as it is.
  const readLink = (before) => (location.hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : before);
  let state = readLink(new URLSearchParams());
  const tell = (changed) => listeners.forEach(([key, listener]) => changed(key) && listener());

  /** Data of the island `data-NAME`; null if the page has none. */
  report.readIsland = (name) => JSON.parse(document.getElementById(`data-${name}`)?.textContent ?? "null");
  /** Value of a key in the link; "" if it has none. @returns {string} */
  report.get = (key) => state.get(key) ?? "";
  /** Write a key into the link; "" takes it out. */
  report.set = (key, value) => {
    if (report.get(key) === String(value)) return;
    if (value) state.set(key, value);
    else state.delete(key);
    history.replaceState(null, "", `#${state}`);
    tell((other) => other === key);
  };
  /** Call a function after each change of a key. */
  report.listen = (key, listener) => void listeners.push([key, listener]);
  addEventListener("hashchange", () => {
    const before = state;
    state = readLink(before);
    tell((key) => before.get(key) !== state.get(key));
  });

  /** An element with properties and children. */
  report.make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  /** A copy of the template `part-NAME`, as `root`, and its named elements; keys click the buttons that name them. */
  report.part = (name) => {
    const template = /** @type {HTMLTemplateElement} */ (document.getElementById(`part-${name}`));
    const root = /** @type {HTMLElement} */ (document.importNode(template.content, true).firstElementChild);
    root.addEventListener("keydown", (event) => {
      const target = /** @type {Element} */ (event.target);
      const key = event.key.toLowerCase();
      const free = !target.matches(key === " " ? "input, select, button:not(.clip)" : "input, select");
      const button = [...root.querySelectorAll("button")].find((each) => each.dataset.key === key);
      if (event.defaultPrevented || !free || !button) return;
      event.preventDefault();
      button.click();
    });
    const named = [...root.querySelectorAll("[data-part]")].map((each) => [each.getAttribute("data-part"), each]);
    return { root, ...Object.fromEntries(named) };
  };
  /** Lines of values as CSV, RFC 4180. */
  report.csv = (lines) => {
    const cell = (value) => (/[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    return lines.map((line) => `${line.map(cell).join(",")}\n`).join("");
  };
}
