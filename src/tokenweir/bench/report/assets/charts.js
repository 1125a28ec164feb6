"use strict";
// Scales, axes and a figure that can be read by pointer, by keyboard and as a table.

const SVG_NS = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  for (const child of children) node.append(child);
  return node;
}
const svg = (name, attributes = {}, ...children) => build(document.createElementNS(SVG_NS, name), attributes, children);
const html = (name, attributes = {}, ...children) => build(document.createElement(name), attributes, children);

/** A number as people read it: about four significant digits, thousands apart. */
function shown(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 0.1 ? 3 : 4;
  return value.toLocaleString("en-US", { minimumFractionDigits: 0, maximumFractionDigits: digits });
}
const withUnit = (value, unit) => (value === null || value === undefined ? "–" : unit ? `${shown(value)} ${unit}` : shown(value));

/** A tick's label: as few digits as tell it from its neighbours. */
function tickLabel(value) {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
  return Number(value.toPrecision(4)).toLocaleString("en-US", { maximumFractionDigits: 6 });
}

function linearTicks(low, high, most) {
  const span = high - low || 1;
  const raw = span / Math.max(1, most);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate >= raw * 0.999);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k += 1) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

function logTicks(low, high, most) {
  for (const factors of [[1, 2, 3, 4, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      for (const factor of factors) {
        const tick = factor * 10 ** power;
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(Number(tick.toPrecision(6)));
      }
    }
    if (ticks.length <= most || factors.length === 1) return ticks;
  }
  return [];
}

/** Maps values to pixels. `kind` is linear, log (0 stands at its low end) or tail (nines of a share). */
function scale(kind, domain, range, ticks = null) {
  const project = kind === "log" ? (value) => Math.log10(value > 0 ? value : domain[0]) : kind === "tail" ? (share) => -Math.log10(Math.max(1 - share, 1e-5)) : (value) => value;
  const [low, high] = domain.map(project);
  const factor = (range[1] - range[0]) / (high - low || 1);
  const map = (value) => range[0] + (project(value) - low) * factor;
  const room = Math.abs(range[1] - range[0]);
  map.ticks = (spacing) => ticks ?? (kind === "log" ? logTicks : linearTicks)(domain[0], domain[1], Math.max(2, Math.floor(room / spacing)));
  map.range = range;
  return map;
}

function extent(values, floor = null) {
  let low = floor === null ? Infinity : floor;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low === Infinity || high === -Infinity) return [0, 1];
  return low === high ? [low, high + (Math.abs(high) || 1) * 0.1] : [low, high];
}

const MARGIN = { left: 58, right: 16, top: 12, bottom: 40 };

/** The frame of a chart: grid, ticks and the names of the axes with their units. */
function frame(width, height, x, y, names) {
  const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const left = MARGIN.left, right = width - MARGIN.right, top = MARGIN.top, bottom = height - MARGIN.bottom;
  const label = names.yLabel ?? tickLabel;
  for (const tick of y.ticks(34)) {
    const at = y(tick);
    root.append(svg("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }));
    root.append(svg("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, label(tick)));
  }
  let last = -Infinity;
  for (const tick of x.ticks(64)) {
    const at = x(tick);
    if (at < left - 1 || at > right + 1) continue;
    root.append(svg("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 }));
    if (at - last < 30) continue;
    last = at;
    root.append(svg("text", { x: at, y: bottom + 17, "text-anchor": "middle" }, tickLabel(tick)));
  }
  root.append(svg("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }));
  root.append(svg("text", { class: "title", x: right, y: height - 6, "text-anchor": "end" }, names.x));
  return root;
}

function shade(root, x, bounds, span, height) {
  const top = MARGIN.top, bottom = height - MARGIN.bottom;
  const parts = [["warm-up", x(span[0]), x(Math.max(bounds[0], span[0]))], ["cool-down", x(Math.min(bounds[1], span[1])), x(span[1])]];
  for (const [name, from, to] of parts) {
    if (to - from < 1) continue;
    root.append(svg("rect", { class: "shade", x: from, y: top, width: to - from, height: bottom - top }));
    if (to - from > 56) root.append(svg("text", { x: (from + to) / 2, y: top + 12, "text-anchor": "middle" }, name));
  }
}

/** The pixels that the curves of a chart pass, close enough together that no label fits between two of them. */
function inked(lines, x, y) {
  const points = [];
  for (const line of lines) {
    let before = null;
    line.x.forEach((at, place) => {
      if (at === null || line.y[place] === null) { before = null; return; }
      const point = [x(at), y(line.y[place])];
      const steps = before && line.role !== "dots" ? Math.max(1, Math.ceil(Math.hypot(point[0] - before[0], point[1] - before[1]) / 4)) : 1;
      for (let step = 1; step < steps; step += 1) points.push([0, 1].map((axis) => before[axis] + ((point[axis] - before[axis]) * step) / steps));
      points.push(point);
      before = point;
    });
  }
  return points;
}

/** Writes a label at the first of the places that nothing is drawn at, or at the one with the least; then it is drawn at. */
function inscribe(root, text, places, points) {
  const width = text.length * 6.4, height = 12;
  const covered = (place) => {
    const left = place.end ? place.x - width : place.x;
    return points.filter(([px, py]) => px > left - 4 && px < left + width + 4 && py > place.y - height && py < place.y + 5).length;
  };
  const counts = places.map(covered);
  const place = places[counts.indexOf(Math.min(...counts))];
  root.append(svg("text", { class: "marked", x: place.x, y: place.y, "text-anchor": place.end ? "end" : "start" }, text));
  for (let at = 0; at <= width; at += 4) points.push([place.end ? place.x - at : place.x + at, place.y - 4]);
}

/** A level across the chart, with its label above or below it, where no curve passes. */
function across(root, mark, y, unit, width, points) {
  const at = y(mark.at), left = MARGIN.left + 6, right = width - MARGIN.right - 6;
  root.append(svg("line", { class: "mark", x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at }));
  const sides = [{ x: left, end: false }, { x: right, end: true }, { x: left + (right - left) * 0.25, end: false }, { x: left + (right - left) * 0.5, end: false }];
  const places = [-5, 14, -24, 33, -44, 53].flatMap((off) => sides.map((side) => ({ ...side, y: at + off })));
  const fits = (place) => place.y > MARGIN.top + 8 && place.y < y.range[0] - 4;
  inscribe(root, `${mark.label} ${withUnit(mark.at, unit)}`, places.filter((place, first) => first === 0 || fits(place)), points);
}

function upright(root, mark, x, unit, height, points) {
  const left = x.range[0], right = x.range[1];
  const at = Math.min(Math.max(x(mark.at), left), right);
  const beyond = x(mark.at) > right + 1;
  const flip = at > (left + right) / 2;
  if (!beyond) root.append(svg("line", { class: "mark", x1: at, x2: at, y1: MARGIN.top, y2: height - MARGIN.bottom }));
  const text = `${mark.label} ${withUnit(mark.at, unit)}${beyond ? " →" : ""}`;
  const bottom = height - MARGIN.bottom - 8, top = MARGIN.top + 12;
  const nearby = (beyond ? [flip] : [flip, !flip]).map((end) => ({ x: at + (end ? -6 : 6), end }));
  const apart = [40, 80, 120, 160].map((off) => ({ x: at + (flip ? -off : off), end: flip }));
  const fits = (side) => (side.end ? side.x - text.length * 6.4 > left : side.x + text.length * 6.4 < right);
  const heights = [bottom, top, (top + bottom) / 2, bottom - (bottom - top) / 4, top + (bottom - top) / 4];
  const places = [nearby, apart].flatMap((sides) => heights.flatMap((y) => sides.map((side) => ({ ...side, y }))));
  inscribe(root, text, places.filter((place, first) => first === 0 || fits(place)), points);
}

function path(xs, ys, x, y) {
  let out = "", open = false;
  for (let i = 0; i < xs.length; i += 1) {
    if (xs[i] === null || ys[i] === null) { open = false; continue; }
    out += `${open ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
    open = true;
  }
  return out;
}

function swatch(role, kind = "line") {
  const mark = kind === "line" && role !== "dots"
    ? svg("line", { class: `line ${role}`, x1: 1, x2: 23, y1: 5, y2: 5 })
    : kind === "line" ? svg("circle", { class: "dots", cx: 12, cy: 5, r: 2.5 }) : svg("rect", { class: role, x: 2, y: 0, width: 20, height: 10, rx: 2 });
  return svg("svg", { width: 24, height: 10, "aria-hidden": "true" }, mark);
}

/** Puts a sort button into each head of a table; numbers sort as numbers. */
function makeSortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = html("button", { type: "button", title: "Sort by this column" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const body = table.tBodies[0];
      const key = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = text === "∞" ? Infinity : Number.parseFloat(text.replaceAll(",", ""));
        return Number.isNaN(number) ? text : number;
      };
      const order = (a, b) => (typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === "number" ? -1 : 1);
      const rows = [...body.rows].map((row) => [key(row), row]);
      rows.sort((a, b) => (down ? -1 : 1) * order(a[0], b[0]));
      body.append(...rows.map((pair) => pair[1]));
    });
  });
}

function dataTable(title, columns, rows) {
  const head = html("tr", {}, ...columns.map((name) => html("th", { scope: "col", class: "num" }, name)));
  const body = rows.map((row) => html("tr", {}, ...row.map((cell) => html("td", { class: "num" }, typeof cell === "string" ? cell : shown(cell)))));
  const table = html("table", {}, html("caption", {}, title), html("thead", {}, head), html("tbody", {}, ...body));
  makeSortable(table);
  return html("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": `Table: ${title}` }, table);
}

const drawn = [];

/**
 * A figure: caption, readout, drawing, table. `draw(width)` returns {root, count, hit(x, y), show(index), clear()};
 * `show` returns what the readout says, `keys` are the legend that stands there otherwise.
 */
function figure(host, chart, parts) {
  const id = `${host.dataset.charts}-${chart.id}`;
  const caption = html("figcaption", { id: `${id}-title` });
  if (chart.n) caption.append(html("span", { class: "n" }, `n ${chart.n.toLocaleString("en-US")}`));
  caption.append(chart.title);
  const readout = html("div", { class: "readout", role: "status", id: `${id}-readout` });
  const plot = html("div", {
    class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart",
    "aria-labelledby": `${id}-title`, "aria-describedby": `${id}-note ${id}-readout`,
  });
  const note = html("p", { class: "note", id: `${id}-note` }, chart.caption);
  const node = html("figure", { class: parts.size ?? "", id }, caption, note);
  if (parts.controls) node.append(parts.controls);
  node.append(readout, plot);
  let state = null, index = -1;
  const rest = () => { index = -1; if (state?.clear) state.clear(); readout.replaceChildren(...parts.keys(null)); };
  const move = (next) => {
    if (!state || !state.count) return;
    index = Math.min(Math.max(next, 0), state.count - 1);
    readout.replaceChildren(...parts.keys(state.show(index)));
  };
  const redraw = () => {
    const width = Math.round(plot.clientWidth);
    if (!width) return;
    state = parts.draw(width);
    plot.replaceChildren(state.root);
    rest();
  };
  plot.addEventListener("pointermove", (event) => {
    if (!state) return;
    const box = state.root.getBoundingClientRect();
    const ratio = state.root.viewBox.baseVal.width / box.width;
    const hit = state.hit((event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
    if (hit === null) rest(); else if (hit !== index) move(hit);
  });
  plot.addEventListener("pointerleave", rest);
  plot.addEventListener("blur", rest);
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (event.key in steps) move(index < 0 ? (steps[event.key] > 0 ? 0 : state.count - 1) : index + steps[event.key]);
    else if (event.key === "Home") move(0);
    else if (event.key === "End") move(state.count - 1);
    else if (event.key === "Escape") rest();
    else return;
    event.preventDefault();
  });
  const details = html("details", {}, html("summary", {}, "Table"));
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const [columns, rows] = parts.table();
    details.append(dataTable(chart.title, columns, rows));
  });
  node.append(details);
  host.append(node);
  drawn.push({ plot, redraw });
  redraw();
  return { redraw };
}

/** The legend: a swatch and a name for each line, and its value when there is one. */
function keysOf(lines, unit, axis = "") {
  return (reading) => {
    const entries = lines.map((line, place) => {
      const key = html("span", { class: "key" }, swatch(line.role), line.name);
      if (reading && reading.values[place] !== undefined) key.append(html("b", {}, withUnit(reading.values[place], unit)));
      return key;
    });
    if (reading) return [html("b", {}, reading.at), ...entries];
    return axis ? [...entries, html("span", { class: "unit" }, `in ${axis}`)] : entries;
  };
}

let resizing = 0;
new ResizeObserver(() => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => {
    for (const { plot, redraw } of drawn) {
      const root = plot.firstElementChild;
      if (!plot.contains(document.activeElement) && plot.clientWidth && (!root || Math.abs(root.viewBox.baseVal.width - plot.clientWidth) > 4)) redraw();
    }
  });
}).observe(document.documentElement);
