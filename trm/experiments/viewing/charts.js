// One line chart as SVG: the page's only charting code. Colours and dashes come from page.css.
"use strict";

function escapeText(text) {
  return String(text).replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign]);
}

// Round numbers that cover [low, high], about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low || 1) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) || 10);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

function shortNumber(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return +(value / 1e6).toFixed(1) + "M";
  if (size >= 1e4) return +(value / 1e3).toFixed(0) + "k";
  return String(+value.toFixed(size < 0.1 ? 3 : 2));
}

// Moves labels apart that would lie on one another; `places` are y coordinates.
function spread(places, gap, top, bottom) {
  const order = places.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  let floor = top;
  for (const item of order) floor = (item[0] = Math.max(item[0], floor)) + gap;
  let ceiling = bottom;
  for (const item of order.reverse()) ceiling = (item[0] = Math.min(item[0], ceiling)) - gap;
  const out = [];
  for (const [y, i] of order) out[i] = y;
  return out;
}

/* Draws into `element`. options: label (for screen readers), xLabel, yLabel,
   series [{name, x, y, low, high, kind}], yMin, yMax, log, percent, mark (a place on x with a name), cursor. */
function lineChart(element, options) {
  const width = Math.max(280, element.clientWidth || 600), height = 240;
  const beside = width >= 520, named = options.series.some((one) => one.name);
  const margin = { left: 48, right: beside && named ? 170 : 14, top: 12, bottom: 42 };
  const xs = options.series.flatMap((one) => one.x);
  const ys = options.series.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])])
    .filter((y) => Number.isFinite(y) && (!options.log || y > 0));
  if (!xs.length || !ys.length) { element.innerHTML = ""; return; }
  const scale = options.log ? Math.log10 : (y) => y;
  const xLow = Math.min(...xs), xHigh = Math.max(...xs);
  let yLow = options.yMin ?? scale(Math.min(...ys)), yHigh = options.yMax ?? scale(Math.max(...ys));
  if (yHigh - yLow < 1e-9) { yLow -= 0.5; yHigh += 0.5; }
  const X = (x) => margin.left + (xHigh === xLow ? 0.5 : (x - xLow) / (xHigh - xLow)) * (width - margin.left - margin.right);
  const Y = (y) => height - margin.bottom - (Math.max(yLow, Math.min(yHigh, scale(y))) - yLow) / (yHigh - yLow) * (height - margin.top - margin.bottom);
  const right = width - margin.right, bottom = height - margin.bottom;
  let out = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escapeText(options.label)}">`;
  let yTicks = ticks(yLow, yHigh, 4);
  if (options.log) {  // powers of ten, or round numbers where there are fewer than two of them
    const powers = yTicks.filter((tick) => Math.abs(tick - Math.round(tick)) < 1e-6);
    yTicks = powers.length > 1 ? powers.map((tick) => 10 ** Math.round(tick)) : ticks(10 ** yLow, 10 ** yHigh, 4).filter((tick) => tick > 0);
  }
  for (const tick of yTicks) {
    const y = Y(tick), size = Math.abs(tick);
    const text = options.percent ? `${Math.round(100 * tick)}%` : options.log && (size < 0.01 || size >= 1e4) ? tick.toExponential(0).replace("+", "") : shortNumber(tick);
    out += `<line class="grid" x1="${margin.left}" x2="${right}" y1="${y}" y2="${y}"/><text class="axis" x="${margin.left - 6}" y="${y + 4}" text-anchor="end">${text}</text>`;
  }
  for (const tick of ticks(xLow, xHigh, width < 480 ? 4 : 8).filter((tick) => !options.whole || Number.isInteger(tick)))
    out += `<text class="axis" x="${X(tick)}" y="${bottom + 16}" text-anchor="middle">${shortNumber(tick)}</text>`;
  out += `<text class="axis" x="${(margin.left + right) / 2}" y="${height - 6}" text-anchor="middle">${escapeText(options.xLabel)}</text>`;
  if (options.mark) {
    const x = X(options.mark.at);
    out += `<line class="mark" x1="${x}" x2="${x}" y1="${margin.top}" y2="${bottom}"/><text class="axis" x="${x + 4}" y="${margin.top + 8}">${escapeText(options.mark.name)}</text>`;
  }
  options.series.forEach((one, i) => {
    const colour = one.kind ?? i % 6;
    const points = one.x.map((x, k) => [x, one.y[k], k]).filter(([, y]) => Number.isFinite(y) && (!options.log || y > 0));
    if (one.low) {
      const up = points.map(([x, , k]) => `${X(x)},${Y(one.high[k])}`);
      const down = points.map(([x, , k]) => `${X(x)},${Y(one.low[k])}`).reverse();
      out += `<polygon class="band f${colour}" points="${[...up, ...down].join(" ")}"/>`;
    }
    out += `<path class="s${colour}" d="M${points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("L")}"/>`;
    if (points.length === 1) out += `<circle class="f${colour}" cx="${X(points[0][0])}" cy="${Y(points[0][1])}" r="4"/>`;
  });
  if (options.cursor !== undefined && options.cursor !== null)
    out += `<line class="cursor" x1="${X(options.cursor)}" x2="${X(options.cursor)}" y1="${margin.top}" y2="${bottom}"/>`;
  if (beside && named) {
    const places = spread(options.series.map((one) => Y(one.y[one.y.length - 1]) + 4), 15, margin.top + 4, bottom + 4);
    options.series.forEach((one, i) => {
      out += `<text class="f${one.kind ?? i % 6}" x="${right + 8}" y="${places[i]}">${escapeText(one.name)}</text>`;
    });
  }
  out += "</svg>";
  if (!beside && named)
    out += `<ul class="key">${options.series.map((one, i) => `<li><svg viewBox="0 0 18 18" aria-hidden="true"><line class="s${one.kind ?? i % 6}" x1="0" x2="18" y1="9" y2="9" stroke-width="3"/></svg>${escapeText(one.name)}</li>`).join("")}</ul>`;
  element.innerHTML = out;
}
