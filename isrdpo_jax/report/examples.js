// The questions of the runs: filtered and sorted by small columns; texts and frames are loaded when they are shown.
// A page on file:// may not fetch, so that the data comes as scripts, each of which calls put(name, value) once.
"use strict";
const waiting = new Map();
function put(name, value) { waiting.get(name)(value); }

(() => {
  const manifest = JSON.parse(document.getElementById("manifest").textContent);
  const at = id => document.getElementById(id);
  const PER_VIEW = 10;
  const [MARGIN, WINNER, REASON, FLIP, LONGEST, WRONG, CHANGE] = [0, 1, 2, 3, 4, 5, 6];
  const loaded = new Map();
  let questions = [], columns = [], found = [], first = 0, drawing = 0;

  function load(name) {
    if (!loaded.has(name)) loaded.set(name, new Promise((resolve, reject) => {
      waiting.set(name, resolve);
      const script = document.createElement("script");
      script.src = `${manifest.folder}/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => { loaded.delete(name); reject(new Error(`${script.src} cannot be loaded; it belongs beside this page.`)); };
      document.head.append(script);
    }));
    return loaded.get(name);
  }
  const iterationFile = t => `t${String(t).padStart(2, "0")}`;
  const textsFile = (t, k) => `${iterationFile(t)}-${String(Math.floor(k / manifest.page)).padStart(4, "0")}`;

  // What is shown

  const passes = {
    all: () => true,
    flips: row => row[FLIP] === 1,
    wrong: row => row[WRONG] === 1,
    kept: row => row[WINNER] !== null,
    dropped: row => row[WINNER] === null,
  };
  const weighs = {
    margin: row => Math.abs(row[MARGIN] ?? -1),
    close: row => (row[MARGIN] === null ? -Infinity : -Math.abs(row[MARGIN])),
    longest: row => row[LONGEST] ?? -1,
    change: row => row[CHANGE] ?? -1,
    id: () => 0,
  };

  async function select() {
    const ticket = ++drawing;
    columns = await load(iterationFile(at("iteration").value));
    if (ticket !== drawing) return;
    const judge = at("judge-run") ? at("judge-run").value : "any", words = at("search").value.toLowerCase();
    const considered = judge === "any" ? columns.filter(Boolean) : [columns[judge]].filter(Boolean);
    const pass = passes[at("show").value], weigh = weighs[at("order").value];
    const hits = [];
    for (let k = 0; k < questions.length; k++) {
      const rows = considered.map(column => column[k]).filter(row => row && pass(row));
      if (!rows.length) continue;
      const [id, video, text] = questions[k];
      if (words && !`${id} ${video} ${text}`.toLowerCase().includes(words)) continue;
      hits.push([Math.max(...rows.map(weigh)), k]);
    }
    found = hits.sort((a, b) => b[0] - a[0] || a[1] - b[1]).map(hit => hit[1]);
    first = 0;
    await draw();
  }

  async function draw() {
    const ticket = ++drawing, t = Number(at("iteration").value), shown = found.slice(first, first + PER_VIEW);
    const beside = at("beside").value;
    const sides = beside === "runs"
      ? manifest.runs.map((_, run) => ({ run, t }))
      : manifest.iterations.map(number => ({ run: Number(beside), t: number }));
    const cards = await Promise.all(shown.map(async k => {
      const texts = await Promise.all(sides.map(side => load(textsFile(side.t, k))));
      return card(k, sides.map((side, i) => ({ ...side, example: texts[i][side.run][k % manifest.page] })));
    }));
    if (ticket !== drawing) return;
    at("cards").replaceChildren(...cards);
    at("found").textContent = found.length
      ? `${(first + 1).toLocaleString("en")}–${(first + shown.length).toLocaleString("en")} of ${found.length.toLocaleString("en")} questions`
      : "No question is like this.";
    at("previous").disabled = first === 0;
    at("next").disabled = first + PER_VIEW >= found.length;
  }

  // How it is shown

  function el(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) if (value !== null) element.setAttribute(name, value);
    element.append(...children.filter(child => child !== null));
    return element;
  }
  const note = text => el("span", { class: "note" }, text);
  const missing = text => el("p", { class: "missing" }, text);
  const signed = x => (x < 0 ? "−" : "+") + Math.abs(x).toFixed(2);
  const percent = p => `${Math.round(100 * p)}\u00a0%`;
  const words = text => text.split(/\s+/).filter(Boolean);

  function card(k, sides) {
    const [id, video, text, strip] = questions[k];
    return el("article", { class: "card", tabindex: "0", "data-id": id },
      note(`video ${video}`), el("h4", null, text),
      strip ? picture(video, strip) : missing(manifest.strips < manifest.videos
        ? `Frames are shown of ${manifest.strips.toLocaleString("en")} of the ${manifest.videos.toLocaleString("en")} videos; not of this one.`
        : "The frames of this video are not at hand."),
      el("div", { class: "sides" }, ...sides.map(side)));
  }

  function picture(video, [file, frames, of, width, height, pixelated]) {
    return el("img", {
      class: pixelated ? "strip pixelated" : "strip", style: `--width: ${width}`, src: `${manifest.folder}/${file}`,
      width, height, decoding: "async", alt: `Video ${video}: ${frames} of ${of} frames, from left to right in time`,
    });
  }

  function side({ run, t, example }) {
    const { label, context } = manifest.runs[run];
    const swatch = document.querySelector(`[data-swatch="${run}"] svg`).cloneNode(true);
    const name = el("span", { class: "run" }, swatch, label);
    const head = el("div", { class: "head" }, name, note(`iteration ${t}`));
    const box = el("div", { class: "side", style: `--colour: var(--run-${run % 6})` }, head);
    if (!example) {
      box.append(missing("This run has no such question in this iteration."));
      return box;
    }
    const winner = example.figures[WINNER], reason = example.figures[REASON];
    const decided = winner !== null && example.kept !== false;
    if (example.kept === false) head.append(tag("warn", `no pair: ${manifest.reasons[reason] || "left out"}`));
    if (example.figures[WRONG] === 1) head.append(tag("bad", "wrong by the truth"));
    example.responses.forEach(([text, finished], i) => {
      const won = decided && winner === i;
      box.append(el("div", { class: "response" + (decided ? (won ? " won" : " lost") : "") },
        el("div", { class: "head" }, el("b", null, `Response ${i + 1}`),
          decided ? (won ? tag("good", example.kept ? "✓ chosen" : "✓ preferred") : tag("bad", "✗ rejected")) : null,
          el("span", null, `${words(text).length} words${finished ? "" : ", cut at the length limit"}`)),
        text ? el("p", null, text) : missing("(empty)")));
    });
    const measure = example.scores.length ? "points of each response" : "log-odds for response 1";
    box.append(el("h5", null, `VERDICT · ${measure}`), ...verdict(example, winner, reason));
    box.append(...description(example, t, context));
    return box;
  }

  const tag = (kind, text) => el("span", { class: `tag ${kind}` }, text);

  function verdict({ orders, said, scores, figures }, winner, reason) {
    const parts = [];
    if (orders.length || figures[MARGIN] !== null) {
      const list = el("dl", { class: "verdict" });
      orders.forEach((odds, i) => {
        const p = 1 / (1 + Math.exp(-odds));
        list.append(
          el("dt", null, `Order ${i + 1} `, note(`(response 1 as ${"AB"[i]})`)),
          el("dd", { class: "bar", "aria-hidden": "true" },
            el("i", { style: `--from: ${100 * Math.min(p, 0.5)}%; --size: ${100 * Math.abs(p - 0.5)}%` })),
          el("dd", null, `${signed(odds)} → ${odds ? `response ${odds > 0 ? 1 : 2}, ${percent(Math.max(p, 1 - p))}` : "neither"}`));
      });
      scores.forEach((points, i) => list.append(el("dt", null, `Response ${i + 1}`), el("dd"), el("dd", null, points.toFixed(2))));
      if (figures[MARGIN] !== null) list.append(
        el("dt", null, orders.length ? "Mean" : "Difference"), el("dd"),
        el("dd", null, el("b", null, signed(figures[MARGIN])), winner === null ? " → no preference" : ` → response ${winner + 1}`));
      parts.push(list);
    } else parts.push(missing(`Not judged: ${manifest.reasons[reason] || reason}.`));
    said.forEach((text, i) => parts.push(el("p", { class: "said" }, note(`Judge, order ${i + 1}: `), text)));
    return parts;
  }

  function description({ description: now, previous }, t, context) {
    const c = number => el("span", null, "c", el("sub", null, String(number)));
    if (now === null) return [el("h5", null, "DESCRIPTION"),
      missing(context === "none" ? "This run's judge uses no description." : "Not described yet.")];
    if (!previous) return [el("h5", null, "DESCRIPTION · ", c(t), t === 1 ? ", the first" : ", made without the one before"),
      el("p", { class: "description" }, now || "(empty)")];
    const parts = difference(words(previous), words(now)), same = parts.every(([kind]) => kind === "same");
    const told = parts.flatMap(([kind, text]) => [kind === "same" ? text : el(kind, null, text), " "]);
    return [el("h5", null, "DESCRIPTION · ", c(t - 1), " → ", c(t), same ? ", unchanged" : ""),
      el("p", { class: "description" }, ...told)];
  }

  // How `old` became `now`, word by word, by their longest common subsequence: ["same" | "del" | "ins", text] in reading order.
  function difference(old, now) {
    const wide = now.length + 1, common = new Uint16Array((old.length + 1) * wide);
    for (let i = old.length - 1; i >= 0; i--) for (let j = now.length - 1; j >= 0; j--)
      common[i * wide + j] = old[i] === now[j] ? common[(i + 1) * wide + j + 1] + 1
        : Math.max(common[(i + 1) * wide + j], common[i * wide + j + 1]);
    const parts = [];
    const add = (kind, word) => {
      if (parts.length && parts.at(-1)[0] === kind) parts.at(-1)[1] += ` ${word}`; else parts.push([kind, word]);
    };
    let i = 0, j = 0;
    while (i < old.length || j < now.length) {
      if (i < old.length && j < now.length && old[i] === now[j]) { add("same", now[j]); i++; j++; }
      else if (j === now.length || (i < old.length && common[(i + 1) * wide + j] >= common[i * wide + j + 1])) add("del", old[i++]);
      else add("ins", now[j++]);
    }
    return parts;
  }

  // Who asks

  function turn(by) {
    const there = first + by * PER_VIEW;
    if (there < 0 || there >= found.length) return Promise.resolve(false);
    first = there;
    return guarded(draw).then(() => true);
  }

  async function step(by) {
    const cards = [...at("cards").children], place = cards.indexOf(document.activeElement.closest(".card"));
    const next = place < 0 ? (by > 0 ? 0 : -1) : place + by;
    if (!cards[next] && !(await turn(by))) return;
    const now = [...at("cards").children];
    (cards[next] || (by > 0 ? now[0] : now.at(-1))).focus();
  }

  async function guarded(work) {
    try { await work(); } catch (error) { at("cards").replaceChildren(missing(error.message)); }
  }

  const keys = {
    j: () => step(1), k: () => step(-1), n: () => turn(1), p: () => turn(-1),
    "/": () => { at("search").focus(); at("examples").scrollIntoView(); },
  };
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || !keys[event.key]) return;
    if (event.target.closest("input, select, textarea")) return;
    event.preventDefault();
    keys[event.key]();
  });
  at("previous").addEventListener("click", () => turn(-1));
  at("next").addEventListener("click", () => turn(1));
  at("tools").addEventListener("submit", event => event.preventDefault());

  // Nothing is loaded before a reader comes near.
  async function begin() {
    ({ questions } = await load("questions"));
    await select();
    at("tools").addEventListener("input", () => guarded(select));
  }
  const near = new IntersectionObserver(entries => {
    if (!entries.some(entry => entry.isIntersecting)) return;
    near.disconnect();
    guarded(begin);
  }, { rootMargin: "600px" });
  near.observe(at("examples"));
})();
