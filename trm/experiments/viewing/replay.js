// The replay viewer: draws what replay.py packed, and answers buttons and keys.
"use strict";

const CELL = 40;

// base64 -> numbers of a typed array; the bytes are little-endian, as on every machine with a browser.
function unpack(text, Kind) {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  return new Kind(bytes.buffer);
}

class Viewer {
  constructor(root, data) {
    this.root = root;
    this.styles = data.styles;
    this.runs = data.runs.filter((run) => run.replays.length);
    this.at = 0;
    this.timer = null;
    this.part = (name) => root.querySelector(`[data-part="${name}"]`);
    this.fill(this.part("run"), this.runs.map((run) => `${run.name} (${run.method}, ${run.env})`));
    this.part("run").closest("div").hidden = this.runs.length < 2;
    this.part("run").addEventListener("change", () => this.chooseRun(+this.part("run").value));
    this.part("puzzle").addEventListener("change", () => this.choosePuzzle(+this.part("puzzle").value));
    this.part("slider").addEventListener("input", () => this.show(+this.part("slider").value));
    for (const radio of root.querySelectorAll("[name=heat]")) radio.addEventListener("change", () => this.draw());
    const actions = { first: () => this.show(0), back: () => this.show(this.at - 1), play: () => this.toggle(),
      next: () => this.show(this.at + 1), last: () => this.show(this.replay.frames.length - 1) };
    for (const [name, act] of Object.entries(actions)) {
      this.part(name).addEventListener("click", () => { if (name !== "play") this.pause(); act(); });
    }
    document.addEventListener("keydown", (event) => this.key(event, actions));
    let width = root.clientWidth;
    window.addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; this.draw(); } });
    this.chooseRun(0);
  }

  fill(select, names) {
    select.innerHTML = names.map((name, i) => `<option value="${i}">${escapeText(name)}</option>`).join("");
  }

  chooseRun(index) {
    this.run = this.runs[index];
    this.fill(this.part("puzzle"), this.run.replays.map((one) => `${one.title}: ${one.solved ? "solved" : "not solved"}`));
    for (const item of this.root.querySelectorAll("[data-edits-only]")) item.hidden = !this.run.plays;
    this.part("puzzle").closest("div").hidden = this.run.replays.length < 2;
    this.choosePuzzle(0);
  }

  choosePuzzle(index) {
    this.pause();
    this.replay = this.run.replays[index];
    this.boards = this.replay.frames.reduce((all, frame) => {
      const before = all[all.length - 1];
      const board = before ? { cells: before.cells.slice(), rules: before.rules, changed: [] } : { cells: [], changed: [] };
      for (const [place, symbol, style] of frame.cells) { board.cells[place] = [symbol, style]; board.changed.push(place); }
      if (frame.rules) board.rules = frame.rules;
      all.push(board);
      return all;
    }, []);
    const has = { chance: false, value: false, entropy: "entropy" in this.replay };
    if (this.replay.legal) { has.chance = "chance" in this.replay.legal[0]; has.value = "q" in this.replay.legal[0]; }
    for (const radio of this.root.querySelectorAll("[name=heat]")) {
      const there = radio.value === "none" || has[radio.value];
      radio.closest("label").hidden = !there;
      if (!there && radio.checked) this.root.querySelector("[name=heat][value=none]").checked = true;
    }
    const wanted = ["chance", "value", "entropy"].find((name) => has[name]);
    if (this.heat() === "none" && wanted) this.root.querySelector(`[name=heat][value=${wanted}]`).checked = true;
    const names = new Set(this.replay.frames.flatMap((frame) => frame.cells.flatMap(([, , style]) => (this.styles[style].name || "").split(" "))));
    for (const item of this.root.querySelectorAll("[data-style]")) item.hidden = !names.has(item.dataset.style);
    this.part("slider").max = this.replay.frames.length - 1;
    this.show(0);
  }

  heat() { return this.root.querySelector("[name=heat]:checked").value; }

  key(event, actions) {
    const inside = event.target.closest && event.target.closest("select, input, textarea, summary, a");
    const button = event.target.closest && event.target.closest("button");
    if (event.ctrlKey || event.metaKey || event.altKey || inside || (button && event.key === " ")) return;
    const name = { ArrowLeft: "back", ArrowRight: "next", Home: "first", End: "last", " ": "play" }[event.key];
    if (!name) return;
    event.preventDefault();
    if (name !== "play") this.pause();
    actions[name]();
  }

  show(at) {
    this.at = Math.max(0, Math.min(this.replay.frames.length - 1, at));
    this.part("slider").value = this.at;
    this.draw();
    if (this.timer && this.at === this.replay.frames.length - 1) this.pause();
  }

  toggle() {
    if (this.timer) { this.pause(); return; }
    if (this.at === this.replay.frames.length - 1) this.show(0);
    this.timer = setInterval(() => this.show(this.at + 1), 500);
    this.part("play").textContent = "Pause";
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.part("play").textContent = "Play";
  }

  // ---- what is shown

  draw() {
    this.state = this.thoughts();
    const text = this.caption();
    this.part("caption").textContent = text;
    this.part("slider").setAttribute("aria-valuetext", text);
    this.part("board").innerHTML = this.board();
    this.part("edits").innerHTML = this.table();
    this.charts();
  }

  // What the model said before the next edit: edits, best first, with probabilities and values.
  thoughts() {
    const legal = this.replay.legal && this.replay.legal[this.at];
    if (!legal) return null;
    return {
      num: legal.num,
      edits: unpack(legal.edits, Uint16Array),
      chance: legal.chance ? unpack(legal.chance, Uint16Array) : null,
      value: legal.q ? unpack(legal.q, Int16Array) : null,
    };
  }

  caption() {
    const frames = this.replay.frames, frame = frames[this.at], last = frames.length - 1;
    const unit = this.run.plays ? "Edit" : "Supervision step";
    const what = "edit" in frame ? `: ${this.run.edits[frame.edit]}` : "";
    const start = this.at ? `${unit} ${this.at} of ${last}${what}.` : `Start; ${last} ${unit.toLowerCase()}${last === 1 ? "" : "s"} follow${last === 1 ? "s" : ""}.`;
    const score = `Score ${+frame.score.toFixed(2)} of ${this.run.max_score}, ${frame.violations || "no"} violation${frame.violations === 1 ? "" : "s"}.`;
    return `${start} ${score}${this.at === last ? ` The outcome: ${this.replay.reason}.` : ""}`;
  }

  // Share 0..1 of colour for each edit, or for each cell of an entropy map.
  shares() {
    const mode = this.heat();
    if (mode === "entropy" && this.at > 0) {
      const cells = this.run.grid[0] * this.run.grid[1];
      const all = unpack(this.replay.entropy, Uint8Array).subarray((this.at - 1) * cells, this.at * cells);
      const most = Math.log2(this.run.values + 1);
      return { cells: Array.from(all, (value) => value / 31 / most), most };
    }
    const state = this.state;
    if (!state || mode === "none" || !state[mode]) return null;
    let shares;
    if (mode === "chance") shares = Array.from(state.chance, (p) => Math.sqrt(p / 65535));
    else {
      const low = Math.min(...state.value), high = Math.max(...state.value);
      shares = Array.from(state.value, (q) => (high > low ? (q - low) / (high - low) : 0.5));
    }
    return { edits: shares };
  }

  board() {
    const [rows, columns] = this.replay.shape, [top, left] = this.replay.origin, board = this.boards[this.at];
    const place = (cell) => {
      const row = top + Math.floor(cell / this.run.grid[1]), column = left + (cell % this.run.grid[1]);
      return row < rows && column < columns ? [column * CELL, row * CELL] : null;
    };
    let out = `<svg viewBox="-2 -2 ${columns * CELL + 4} ${rows * CELL + 4}" role="img" aria-label="${escapeText(this.spoken())}">`;
    board.cells.forEach(([symbol, number], index) => {
      const style = this.styles[number], x = (index % columns) * CELL, y = Math.floor(index / columns) * CELL;
      out += `<rect x="${x}" y="${y}" width="${CELL}" height="${CELL}" ${style.name ? `class="${style.name}"` : `fill="${style.paper}"`}/>`;
    });
    out += this.heatMap(place);
    board.cells.forEach(([symbol, number], index) => {
      const style = this.styles[number], x = (index % columns) * CELL, y = Math.floor(index / columns) * CELL;
      if (style.name && style.name.includes("conflict")) out += `<polygon class="flag" points="${x},${y} ${x + 11},${y} ${x},${y + 11}"/>`;
      if (symbol && !(style.ink && style.ink === style.paper))
        out += `<text x="${x + CELL / 2}" y="${y + CELL / 2 + 1}" font-size="24" ${style.bold ? 'font-weight="700"' : ""} ${style.name ? `class="${style.name}"` : `fill="${style.ink}"`}>${escapeText(symbol)}</text>`;
      const outside = !style.name && style.ink === style.paper && !symbol;
      if (!outside) out += `<rect class="thin" x="${x}" y="${y}" width="${CELL}" height="${CELL}"/>`;
    });
    for (const [side, list] of board.rules.entries()) for (const index of list) {
      const x = (index % columns) * CELL, y = Math.floor(index / columns) * CELL;
      out += side ? `<path class="thick" d="M${x + CELL},${y}v${CELL}"/>` : `<path class="thick" d="M${x},${y + CELL}h${CELL}"/>`;
    }
    const frames = this.replay.frames, next = frames[this.at + 1];
    const ring = (edit, name) => {
      const at = edit === undefined || this.run.cell[edit] < 0 ? null : place(this.run.cell[edit]);
      const box = at && `x="${at[0] + 2}" y="${at[1] + 2}" width="${CELL - 4}" height="${CELL - 4}" rx="4"`;
      return at ? `<rect class="halo" ${box}/><rect class="${name}" ${box}/>` : "";
    };
    out += ring(frames[this.at].edit, "last") + ring(next && next.edit, "next");
    return out + "</svg>";
  }

  // Colour on the legal edits: one small square a value where a cell has several, else the cell.
  heatMap(place) {
    const found = this.shares();
    if (!found) return "";
    const most = found.cells ? 0.55 : 0.9;
    const square = (x, y, size, share, name) =>
      `<rect class="heat-${this.heat()}" x="${x}" y="${y}" width="${size}" height="${size}" opacity="${(most * Math.min(1, share)).toFixed(3)}"><title>${escapeText(name)}</title></rect>`;
    if (found.cells) return found.cells.map((share, cell) => {
      const at = place(cell);
      return at ? square(at[0], at[1], CELL, share, `doubt ${(share * found.most).toFixed(2)} bits`) : "";
    }).join("");
    const edits = this.state.edits, byCell = new Map();
    edits.forEach((edit, i) => {
      const cell = this.run.cell[edit];
      if (cell >= 0) byCell.set(cell, [...(byCell.get(cell) || []), i]);
    });
    const several = [...byCell.values()].some((list) => list.length > 1) && this.run.values <= 16;
    const side = several ? Math.ceil(Math.sqrt(this.run.values)) : 1, size = CELL / side;
    let out = "";
    for (const [cell, list] of byCell) {
      const at = place(cell);
      if (!at) continue;
      if (!several) {
        const best = list.reduce((a, b) => (found.edits[b] > found.edits[a] ? b : a));
        out += square(at[0], at[1], CELL, found.edits[best], this.describe(best));
        continue;
      }
      for (const i of list) {
        const value = Math.max(0, this.run.value[edits[i]] - 1);
        const x = at[0] + (value % side) * size, y = at[1] + Math.floor(value / side) * size;
        out += square(x, y, size, found.edits[i], this.describe(i));
        if (size >= 10 && this.blank(cell)) out += `<text class="mini" x="${x + size / 2}" y="${y + size / 2 + 0.5}" font-size="${(size * 0.62).toFixed(1)}">${escapeText(this.run.symbols[value + 1] || "")}</text>`;
      }
    }
    return out;
  }

  // Whether the plan leaves a cell blank, so that its candidates can be written into it.
  blank(cell) {
    const [top, left] = this.replay.origin, columns = this.replay.shape[1];
    const index = (top + Math.floor(cell / this.run.grid[1])) * columns + left + (cell % this.run.grid[1]);
    return !this.boards[this.at].cells[index][0];
  }

  describe(i) {
    const { edits, chance, value } = this.state;
    const parts = [this.run.edits[edits[i]]];
    if (chance) parts.push(`probability ${this.percent(chance[i] / 65535)}`);
    if (value) parts.push(`expected return ${this.percent(value[i] / this.run.value_scale)}`);
    return parts.join(", ");
  }

  percent(share) { return share > 0 && share < 0.001 ? "below 0.1%" : `${(100 * share).toFixed(1)}%`; }

  spoken() {
    const [rows, columns] = this.replay.shape, cells = this.boards[this.at].cells, lines = [];
    if (rows * columns > 400) return `Picture of ${rows} by ${columns} cells`;
    for (let row = 0; row < rows; row++)
      lines.push(`row ${row + 1}: ${cells.slice(row * columns, (row + 1) * columns).map(([symbol]) => symbol || "blank").join(" ")}`);
    return lines.join("; ");
  }

  table() {
    const state = this.state, next = this.replay.frames[this.at + 1];
    if (!state) return `<p class="soft">${this.run.plays ? "No edit follows this plan." : "Colour shows how unsure the model is of a cell, in bits."}</p>`;
    const chosen = next ? next.edit : -1, places = Array.from(state.edits.subarray(0, 6), (_, i) => i);
    const further = state.edits.indexOf(chosen);
    if (further >= 6) places.push(further);
    const rows = places.map((i) => {
      const is = state.edits[i] === chosen;
      const chance = state.chance ? `<td class="number">${this.percent(state.chance[i] / 65535)}</td>` : "";
      const value = state.value ? `<td class="number">${this.percent(state.value[i] / this.run.value_scale)}</td>` : "";
      return `<tr${is ? ' class="chosen"' : ""}><td>${escapeText(this.run.edits[state.edits[i]])}${is ? " (taken next)" : ""}</td>${chance}${value}</tr>`;
    });
    const heads = `<th scope="col">edit</th>${state.chance ? '<th scope="col" class="number">probability</th>' : ""}${state.value ? '<th scope="col" class="number">expected return</th>' : ""}`;
    return `<table><caption class="hidden">Leading edits before the next one</caption><thead><tr>${heads}</tr></thead><tbody>${rows.join("")}</tbody></table><p class="soft">${state.num} edit${state.num === 1 ? " is" : "s are"} legal here.</p>`;
  }

  charts() {
    const replay = this.replay, deep = replay.deep, at = this.at, part = (name) => this.part(name);
    const draw = (name, there, options) => {
      part(name).hidden = !there;
      if (there) lineChart(part(name).querySelector(".chart"), options());
    };
    const line = replay.values || replay.halting;
    const first = replay.values ? 0 : 1;
    draw("course", Boolean(line), () => ({
      label: replay.values ? "Predicted return before each edit" : "Probability of halting after each step",
      xLabel: replay.values ? "edits made" : "supervision step", whole: true, yMin: 0, yMax: Math.max(1, ...line), percent: true,
      series: [{ name: "", x: line.map((_, i) => i + first), y: line }], cursor: Math.max(first, Math.min(at, line.length - 1 + first)),
    }));
    const known = Boolean(deep) && at < replay.legal.length;
    const n = deep ? deep.depth : 0, depths = Array.from({ length: n + 1 }, (_, i) => i);
    const mark = deep ? { at: deep.trained, name: `trained: n = ${deep.trained}` } : null;
    draw("deepening", known, () => {
      const values = unpack(deep.values, Float32Array).subarray(at * (n + 1), (at + 1) * (n + 1));
      return { label: "Predicted return by depth of the recursion", xLabel: "n, updates of the latent", whole: true, percent: true, yMin: Math.min(0, ...values),
        yMax: Math.max(1, ...values), mark, series: [{ name: "", x: depths, y: Array.from(values) }] };
    });
    draw("ranking", known && this.state && this.state.chance !== null, () => {
      const leading = unpack(deep.leading, Uint16Array).subarray(at * deep.top, (at + 1) * deep.top);
      const chance = unpack(deep.chance, Uint16Array);
      const series = Array.from(leading, (edit, k) => ({ name: this.run.edits[edit], x: depths,
        y: depths.map((d) => chance[(at * deep.top + k) * (n + 1) + d] / 65535) })).filter((one) => Math.max(...one.y) > 0);
      return { label: "Probability of the leading edits by depth of the recursion", xLabel: "n, updates of the latent", whole: true, percent: true,
        yMin: 0, yMax: 1, mark, series };
    });
    draw("moves", known, () => {
      const moves = Array.from(unpack(deep.moves, Float32Array).subarray(at * n, (at + 1) * n));
      const x = depths.slice(0, n), series = [{ name: "moved", x, y: moves }];
      if (deep.modulus !== null) series.push({ name: `certified: ${deep.modulus.toFixed(2)}^n`, x, y: x.map((d) => moves[0] * deep.modulus ** d) });
      return { label: "Distance between successive latents, and the certified bound on it", xLabel: "n, updates of the latent", whole: true, log: true, series };
    });
    part("certificate").hidden = !(known && deep.modulus !== null);
    part("no-certificate").hidden = !(known && deep.modulus === null);
  }
}

const pageData = JSON.parse(document.getElementById("data").textContent);
for (const figure of document.querySelectorAll("[data-curve]")) {
  const draw = () => lineChart(figure, pageData.curves[+figure.dataset.curve]);
  draw();
  window.addEventListener("resize", draw);
}
const viewerRoot = document.getElementById("viewer");
if (viewerRoot) new Viewer(viewerRoot, pageData);
