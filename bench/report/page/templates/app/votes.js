// @ts-check
// The blind vote: pairs of videos without names, three questions each, and a CSV file that `bench votes` reads.
"use strict";

{
  const { make, part, find, Clock, Screen } = report;
  const [suite, clips] = ["suite", "clips"].map(report.readIsland);
  const app = document.getElementById("vote-app");
  const LENGTHS = [12, 24, 48, 96];
  const QUESTIONS = ["visual", "motion", "text"];
  const COLUMNS = ["suite", "digest", "vote", "alias", "order", "kind", "prompt_index", "video", "seed", "left",
    "right", "left_sha256", "right_sha256", "question", "answer", "seconds", "colour_blind"];

  /** Numbers in [0, 1) by mulberry32, the same for the same vote on the same report. */
  function makeRandom(/** @type {string} */ vote) {
    let state = parseInt(suite.digest.slice(0, 8), 16) ^ Math.imul(Number(vote), 0x9e3779b1);
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }

  /** All pairs of rows with videos of the same prompt, seed and noise. */
  function allPairs() {
    const labels = suite.rows.map((row) => row.label).filter((label) => clips.kind && clips.sets[label]);
    const seeds = [...new Set(labels.flatMap((label) => Object.keys(clips.sets[label])))].filter((seed) => seed);
    const videos = [...Array(clips.videos).keys()];
    return seeds.flatMap((seed) => [...suite.prompts.keys()].flatMap((prompt) => videos.flatMap((video) => {
      const here = labels.filter((row) => find({ row, seed, prompt, video }));
      return here.flatMap((left, i) => here.slice(i + 1).map((right) => ({ seed, prompt, video, left, right })));
    })));
  }

  /**
   * The longest list of a vote; a shorter vote is its beginning. Rows and prompts come equally often, every tenth pair
   * is an earlier one with its sides swapped, and two of the first twelve show one video on both sides.
   */
  function makeList(/** @type {string} */ vote) {
    const random = makeRandom(vote);
    const pick = (list) => list[Math.floor(random() * list.length)];
    const free = allPairs().map((pair) => ({ ...pair, key: random() })).sort((one, other) => one.key - other.key);
    const identical = [pick([3, 4, 5, 6]), pick([7, 8, 9, 11, 12])];
    const used = new Map(); // how often two rows, a prompt, and both together have come
    const keysOf = ({ left, right, prompt }) => [`${left} ${right}`, prompt, `${left} ${right} ${prompt}`];
    const weight = (pair) => keysOf(pair).reduce((sum, key) => sum + (used.get(key) ?? 0), 0);
    const list = [];
    for (let order = 1; order <= Math.max(...LENGTHS) && free.length; order++) {
      if (order % 10 === 0) {
        const earlier = pick(list.filter((pair) => pair.kind === "pair" && pair.order < order - 2 && !pair.repeated));
        earlier.repeated = true;
        list.push({ ...earlier, order, kind: "repeat", left: earlier.right, right: earlier.left });
      } else if (identical.includes(order)) {
        const pair = pick(free);
        list.push({ ...pair, order, kind: "identical", right: pair.left });
      } else {
        const pair = free.reduce((best, other) => (weight(other) < weight(best) ? other : best));
        free.splice(free.indexOf(pair), 1);
        for (const key of keysOf(pair)) used.set(key, (used.get(key) ?? 0) + 1);
        const [left, right] = random() < 0.5 ? [pair.left, pair.right] : [pair.right, pair.left];
        list.push({ ...pair, order, kind: "pair", left, right });
      }
    }
    return list;
  }

  function startVotes(/** @type {HTMLElement} */ app) {
    const { root, live, body } = part("vote");
    const clock = new Clock(() => screens.forEach((screen) => screen.draw()));
    /** @type {Storage | null} */
    let storage = null;
    try { storage = localStorage; } catch {} // blocked: the first screen says so
    const number = () => report.get("votes") || "1";
    const place = () => `votes ${suite.digest} ${number()}`;
    let list = [];
    let screens = [];
    /** @type {any} */
    let vote = { alias: "", colour_blind: "", length: 0, answers: [] };
    let since = 0; // when the pair was shown

    /** Show a part, and nothing of the page but the vote while it is open. */
    function show(screen, text = "", open = true) {
      document.body.classList.toggle("voting", open);
      if (screen.leave) screen.leave.onclick = () => report.set("votes", "");
      body.replaceChildren(screen.root);
      live.textContent = text;
    }

    function showStart() {
      const known = /^[1-9]\d{0,5}$/.test(number());
      list = known ? makeList(number()) : [];
      clock.step(0);
      const lack = clips.kind ? "A vote needs videos of two rows with the same seed." : "There are no videos to vote on.";
      if (list.length < 3) return show({ root: "" }, known ? lack : "A vote has a whole number, as in #votes=7.", false);
      const screen = part("vote-start");
      const { alias, sight, pairs, vote: numbers } = screen.root.elements;
      const saved = JSON.parse(storage?.getItem(place()) ?? "null");
      const lengths = LENGTHS.filter((count) => count <= list.length);
      if (!lengths.length) lengths.push(list.length);
      pairs.append(...lengths.map((count) => new Option(`${count} pairs`, String(count))));
      numbers.value = number();
      screen.again.hidden = !saved;
      screen.again.textContent = `Continue as ${saved?.alias} after ${saved?.answers.length} answers`;
      screen.again.onclick = () => open(saved);
      screen.blocked.hidden = storage !== null;
      screen.leave.hidden = !report.get("votes");
      screen.root.onsubmit = (event) => {
        event.preventDefault();
        report.set("votes", String(Number(numbers.value)));
        open({ alias: alias.value, colour_blind: sight.value, length: Number(pairs.value), answers: [] });
      };
      show(screen, "", report.get("votes") !== "");
    }

    function open(begun) {
      vote = begun;
      if (!matchMedia("(prefers-reduced-motion: reduce)").matches) clock.play();
      showPair();
    }

    /** Show the pair of the next answer, or the result. */
    async function showPair() {
      const plays = clock.playing;
      clock.step(-clock.frame);
      screens.splice(0).forEach((each) => each.close());
      if (vote.answers.length === vote.length * 3) return showResult();
      const pair = list[Math.floor(vote.answers.length / 3)];
      const screen = part("vote-pair");
      const buttons = [...screen.answers.children];
      screens = [pair.left, pair.right].map((row) => new Screen(find({ ...pair, row }), clock, true));
      [screen.left, screen.right].forEach((side, i) => side.prepend(screens[i].element));
      screen.text.textContent = suite.prompts[pair.prompt].text;
      screen.bar.replaceWith(clock.bar.root);
      const ask = () => {
        const question = vote.answers.length % 3;
        [...screen.questions.children].forEach((each, i) => (each.hidden = i !== question));
        screen.undo.disabled = !vote.answers.length;
        live.textContent = `Pair ${pair.order} of ${vote.length}, question ${question + 1} of 3`;
      };
      screen.undo.onclick = () => {
        vote.answers.pop();
        showPair();
      };
      for (const button of buttons) button.onclick = () => {
        vote.answers.push({ answer: button.name, seconds: ((performance.now() - since) / 1000).toFixed(1) });
        storage?.setItem(place(), JSON.stringify(vote));
        if (vote.answers.length % 3) ask();
        else showPair();
      };
      show(screen);
      body.focus({ preventScroll: true }); // what had the focus is gone
      ask();
      const seen = await Promise.all(screens.map((each) => each.draw()));
      since = performance.now();
      for (const button of buttons) button.disabled = seen.includes(false);
      if (plays) clock.play();
    }

    /** The answers with their pairs, by the columns of the file. */
    const linesOf = () => vote.answers.map((answer, i) => {
      const pair = list[Math.floor(i / 3)];
      const [left_sha256, right_sha256] = [pair.left, pair.right].map((row) => find({ ...pair, row }).sha256);
      const names = { suite: suite.name, digest: suite.digest, prompt_index: pair.prompt, question: QUESTIONS[i % 3] };
      return { ...vote, ...pair, ...answer, ...names, vote: number(), left_sha256, right_sha256 };
    });

    function showResult() {
      const screen = part("vote-result");
      const lines = linesOf();
      const won = (line) => line[line.answer];
      const lost = (line) => line[{ left: "right", right: "left" }[line.answer]];
      const count = (label, question, side) => lines.filter((line) =>
        line.kind === "pair" && line.question === question && side(line) === label).length;
      screen.rows.append(...suite.rows.map(({ label, title }) => make("tr", {}, make("th", { scope: "row" }, title),
        ...QUESTIONS.map((each) => make("td", {}, `${count(label, each, won)} : ${count(label, each, lost)}`)))));
      screen.save.onclick = () => {
        const text = report.csv([COLUMNS, ...lines.map((line) => COLUMNS.map((column) => line[column]))]);
        const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
        make("a", { href, download: `votes-${suite.name}-${vote.alias}.csv` }).click();
        setTimeout(() => URL.revokeObjectURL(href), 10000); // the download has begun by then
      };
      show(screen, `All ${vote.length} pairs are done`);
    }

    app.append(root);
    app.parentElement?.classList.add("alive");
    report.listen("votes", showStart);
    showStart();
  }
  if (app && suite && clips) startVotes(app);
}
