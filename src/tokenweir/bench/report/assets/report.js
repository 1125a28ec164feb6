// The charts of one run, drawn from the JSON that the page carries.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SHARE_TICKS = [0, 0.25, 0.5, 0.75, 0.9, 1];
const TAIL_TICKS = [0, 0.5, 0.9, 0.99, 0.999, 0.9999];
const shareLabel = (share) => `p${Number((share * 100).toPrecision(7))}`;
/** How wide each of `count` figures is, so that their rows are full. */
function sizes(count) {
  const halves = count === 4 ? 4 : count % 3 === 2 ? 2 : 0;
  return Array.from({ length: count }, (_, place) => (count === 1 ? "wide" : place < halves ? "" : "third"));
}
const settings = { tail: false };

function nearest(values, wanted) {
  let best = -1, least = Infinity;
  values.forEach((value, place) => {
    if (value === null) return;
    const distance = Math.abs(value - wanted);
    if (distance < least) { least = distance; best = place; }
  });
  return best;
}

function cross(root, height) {
  const group = svg("g", { visibility: "hidden" });
  const line = svg("line", { class: "cross", y1: MARGIN.top, y2: height - MARGIN.bottom });
  group.append(line);
  root.append(group);
  return {
    clear: () => group.setAttribute("visibility", "hidden"),
    show(at, points) {
      line.setAttribute("x1", at);
      line.setAttribute("x2", at);
      group.replaceChildren(line, ...points.map(([role, px, py]) => svg("circle", { class: `point ${role}`, cx: px, cy: py, r: 4 })));
      group.setAttribute("visibility", "visible");
    },
  };
}

function axesOf(chart, width, height) {
  const lines = chart.lines, isCdf = chart.kind === "cdf";
  const xs = lines.flatMap((line) => line.x), ys = lines.flatMap((line) => line.y);
  const positive = (values) => values.filter((value) => value > 0);
  const logX = chart.log_x && positive(xs).length > 0;
  let domain = extent(logX ? positive(xs) : xs, isCdf && !logX ? 0 : null);
  for (const mark of chart.marks) if (logX || mark.at <= domain[1] * 2) domain = extent([...domain, mark.at]);
  const ticks = chart.kind === "sweep" ? [...new Set(lines[0].x)] : null;
  if (chart.kind === "sweep" && !logX) domain = [domain[0] - (domain[1] - domain[0]) * 0.04, domain[1] + (domain[1] - domain[0]) * 0.04];
  const x = scale(logX ? "log" : "linear", domain, [MARGIN.left, width - MARGIN.right], ticks);
  const vertical = [height - MARGIN.bottom, MARGIN.top];
  if (isCdf) {
    return settings.tail ? { x, domain, y: scale("tail", [0, 0.99999], vertical, TAIL_TICKS) } : { x, domain, y: scale("linear", [0, 1], vertical, SHARE_TICKS) };
  }
  const known = positive(ys);
  const levels = chart.levels.map((mark) => mark.at);
  const range = extent([...known, ...levels]);
  if (chart.kind === "sweep" && chart.y_unit === "ms" && range[1] / range[0] > 30) return { x, domain, y: scale("log", [range[0] * 0.8, range[1] * 1.2], vertical) };
  return { x, domain, y: scale("linear", [0, (extent([...ys, ...levels], 0)[1] || 1) * 1.06], vertical) };
}

function drawLines(chart, width) {
  const height = Math.max(230, Math.min(290, width * 0.42)), isCdf = chart.kind === "cdf";
  const { x, y, domain } = axesOf(chart, width, height);
  const names = { x: [chart.x, chart.x_unit].filter(Boolean).join(", "), yLabel: isCdf ? shareLabel : tickLabel };
  const root = frame(width, height, x, y, names);
  if (chart.shade) shade(root, x, chart.shade, domain, height);
  for (const line of [...chart.lines].reverse()) {
    if (line.role === "dots") {
      line.x.forEach((at, place) => root.append(svg("circle", { class: "dots", cx: x(at).toFixed(1), cy: y(line.y[place]).toFixed(1), r: 1.8 })));
      continue;
    }
    root.append(svg("path", { class: `line ${line.role}`, d: path(line.x, line.y, x, y) }));
    if (chart.kind === "sweep" || line.x.length < 3) {
      line.x.forEach((at, place) => line.y[place] !== null && root.append(svg("circle", { class: `point ${line.role}`, cx: x(at), cy: y(line.y[place]), r: 4 })));
    }
  }
  const points = chart.marks.length || chart.levels.length ? inked(chart.lines, x, y) : [];
  for (const mark of chart.marks) upright(root, mark, x, chart.x_unit, height, points);
  for (const mark of chart.levels) across(root, mark, y, chart.y_unit, width, points);
  const pixels = chart.lines[0].x.map((at) => (at === null ? null : x(at)));
  const marker = cross(root, height);
  return {
    root, count: pixels.length, clear: marker.clear,
    hit: (px, py) => (px < MARGIN.left - 20 || px > width - MARGIN.right + 20 || py > height ? null : nearest(pixels, px)),
    show(index) {
      const first = chart.lines[0];
      const places = chart.lines.map((line) => (line.role === "dots" ? -1 : isCdf ? index : line.x.indexOf(first.x[index])));
      const points = chart.lines.map((line, k) => (places[k] >= 0 && line.x[places[k]] !== null && line.y[places[k]] !== null ? [line.role, x(line.x[places[k]]), y(line.y[places[k]])] : null));
      const values = chart.lines.map((line, k) => (places[k] < 0 ? undefined : isCdf ? line.x[places[k]] : line.y[places[k]]));
      if (first.x[index] !== null) marker.show(x(first.x[index]), points.filter(Boolean)); else marker.clear();
      const at = isCdf ? shareLabel(Number((first.y[index]).toFixed(6))) : `${chart.kind === "sweep" ? `${chart.x} ` : ""}${withUnit(first.x[index], chart.x_unit)}`;
      return { at, values };
    },
  };
}

function tableOfLines(chart) {
  const lines = chart.lines.filter((line) => line.role !== "dots");
  if (chart.kind === "cdf") {
    return [["percentile", ...lines.map((line) => `${line.name}, ${chart.x_unit}`)], lines[0].y.map((share, place) => [shareLabel(Number(share.toFixed(6))).slice(1), ...lines.map((line) => line.x[place])])];
  }
  const xs = [...new Set(lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const found = lines.map((line) => new Map(line.x.map((at, place) => [at, line.y[place]])));
  return [[`${chart.x}, ${chart.x_unit}`, ...lines.map((line) => `${line.name}, ${chart.y_unit}`)], xs.map((at) => [at, ...found.map((values) => values.get(at) ?? null)])];
}

function lineFigures(host, charts) {
  const widths = sizes(charts.length);
  return charts.map((chart, place) => lineFigure(host, chart, widths[place]));
}

function lineFigure(host, chart, size) {
  return figure(host, chart, {
    size,
    draw: (width) => drawLines(chart, width),
    keys: chart.kind === "cdf" ? keysOf(chart.lines, chart.x_unit) : keysOf(chart.lines, chart.y_unit, chart.y_unit),
    table: () => tableOfLines(chart),
  });
}

const LEVELS = 8;

function heatFigure(host, heat) {
  const rows = heat.edges_ms.length - 1;
  const grid = new Map();
  let most = 1;
  for (let k = 0; k < heat.cells.length; k += 3) {
    grid.set(heat.cells[k] * rows + heat.cells[k + 1], heat.cells[k + 2]);
    most = Math.max(most, heat.cells[k + 2]);
  }
  const level = (count) => (most === 1 ? LEVELS - 1 : Math.min(LEVELS - 1, Math.floor((Math.log(count) / Math.log(most)) * LEVELS)));
  const columns = Array.from({ length: heat.columns }, (_, column) => {
    const counts = Array.from({ length: rows }, (__, row) => grid.get(column * rows + row) ?? 0);
    const n = counts.reduce((sum, count) => sum + count, 0);
    const at = (share) => {
      let sum = 0;
      for (let row = 0; row < rows; row += 1) { sum += counts[row]; if (sum > 0 && sum >= share * n) return heat.edges_ms[row + 1]; }
      return null;
    };
    return { n, p50: at(0.5), p99: at(0.99), max: at(1) };
  });
  const span = [heat.start, heat.start + heat.columns * heat.width];
  const from = (column) => `${shown(heat.start + column * heat.width)}–${shown(heat.start + (column + 1) * heat.width)} s`;
  const draw = (width) => {
    const height = 300;
    const x = scale("linear", span, [MARGIN.left, width - MARGIN.right]);
    const y = scale("log", [heat.edges_ms[0], heat.edges_ms[rows]], [height - MARGIN.bottom, MARGIN.top]);
    const root = frame(width, height, x, y, { x: "since the run's start, s" });
    const paths = Array.from({ length: LEVELS }, () => "");
    for (const [place, count] of grid) {
      const column = Math.floor(place / rows), row = place % rows;
      const left = x(span[0] + column * heat.width), right = x(span[0] + (column + 1) * heat.width);
      const top = y(heat.edges_ms[row + 1]), bottom = y(heat.edges_ms[row]);
      paths[level(count)] += `M${left.toFixed(2)} ${top.toFixed(2)}H${(right + 0.3).toFixed(2)}V${(bottom + 0.3).toFixed(2)}H${left.toFixed(2)}Z`;
    }
    paths.forEach((d, k) => d && root.append(svg("path", { class: `h${k}`, d })));
    if (heat.shade) shade(root, x, heat.shade, span, height);
    const box = svg("rect", { class: "hover", visibility: "hidden", y: MARGIN.top, height: height - MARGIN.top - MARGIN.bottom });
    root.append(box);
    return {
      root, count: heat.columns, clear: () => box.setAttribute("visibility", "hidden"),
      hit(px) {
        const column = Math.floor(((px - MARGIN.left) / (width - MARGIN.left - MARGIN.right)) * heat.columns);
        return column >= 0 && column < heat.columns ? column : null;
      },
      show(column) {
        const left = x(span[0] + column * heat.width);
        build(box, { x: left, width: x(span[0] + (column + 1) * heat.width) - left, visibility: "visible" }, []);
        return column;
      },
    };
  };
  const keys = (column) => {
    if (column !== null) {
      const { n, p50, p99, max } = columns[column];
      return [html("b", {}, from(column)), ...[["n", n.toLocaleString("en-US")], ["p50 ≤", withUnit(p50, "ms")], ["p99 ≤", withUnit(p99, "ms")], ["most ≤", withUnit(max, "ms")]].map(([name, text]) => html("span", { class: "key" }, name, html("b", {}, text)))];
    }
    const ramp = svg("svg", { width: LEVELS * 18, height: 10, "aria-hidden": "true" }, ...Array.from({ length: LEVELS }, (_, k) => svg("rect", { class: `h${k}`, x: k * 18, width: 18, height: 10 })));
    return [html("span", { class: "key" }, "1", ramp, `${most.toLocaleString("en-US")} gaps`), html("span", { class: "unit" }, "upwards: the gap in ms, log scale")];
  };
  figure(host, heat, { size: "wide", draw, keys, table: () => [["time", "n", "p50 at most, ms", "p99 at most, ms", "most, ms"], columns.map((column, k) => [from(k), column.n, column.p50, column.p99, column.max])] });
}

function timelineFigure(host, timeline) {
  const state = { aligned: timeline.aligned };
  const status = (row) => timeline.statuses[row[2]] ?? "unknown", phase = (row) => timeline.phases[row[1]] ?? "unknown";
  const toggle = html("button", { type: "button", "aria-pressed": String(state.aligned) }, "From a common start");
  const keyNames = [["lag", "waiting to be sent"], ["wait", "waiting for the first token"], ["decode", "receiving"], ["failed", "failed"], ["cancelled", "cancelled"]];
  const used = keyNames.filter(([name]) => !["failed", "cancelled"].includes(name) || timeline.rows.some((row) => status(row) === name));
  if (timeline.stall_ms) used.push(["stall", `gap above ${withUnit(timeline.stall_ms, "ms")}, the p99`]);
  const span = (a, b) => (a === null || b === null ? null : (b - a) * 1000);
  const draw = (width) => {
    const thick = Math.max(1.6, Math.min(14, 720 / timeline.rows.length));
    const height = Math.ceil(timeline.rows.length * thick) + MARGIN.top + MARGIN.bottom;
    const zero = (row) => (state.aligned ? row[3] : 0);
    const ends = timeline.rows.flatMap((row) => [row[3] - zero(row), (row[6] ?? row[5] ?? row[4] ?? row[3]) - zero(row)]);
    const domain = extent(ends);
    const x = scale("linear", domain, [MARGIN.left, width - MARGIN.right]);
    const y = scale("linear", [0, timeline.rows.length], [MARGIN.top, height - MARGIN.bottom], []);
    const root = frame(width, height, x, y, { x: `${state.aligned ? "since its scheduled time" : "since the run's start"}, s` });
    const paths = new Map();
    const bar = (kind, dim, row, place, from, to) => {
      if (from === null || to === null) return;
      const key = `${kind}${dim ? " dim" : ""}`;
      const left = x(from - zero(row)), right = Math.max(x(to - zero(row)), left + 0.6), top = y(place);
      paths.set(key, `${paths.get(key) ?? ""}M${left.toFixed(1)} ${(top + thick * 0.08).toFixed(2)}H${right.toFixed(1)}v${(thick * 0.84).toFixed(2)}H${left.toFixed(1)}Z`);
    };
    timeline.rows.forEach((row, place) => {
      const [, , , scheduled, sent, first, end] = row, dim = phase(row) !== "measured";
      bar("lag", dim, row, place, scheduled, sent);
      if (status(row) === "completed") {
        bar("wait", dim, row, place, sent, first ?? end);
        bar("decode", dim, row, place, first, end);
        const stalls = timeline.stalls[place] ?? [];
        for (let k = 0; k < stalls.length; k += 2) bar("stall", dim, row, place, stalls[k], stalls[k + 1]);
      } else {
        bar(status(row) === "failed" ? "failed" : "cancelled", dim, row, place, sent ?? scheduled, end ?? first ?? sent ?? scheduled);
      }
    });
    for (const [key, d] of [...paths].sort((a, b) => a[0].startsWith("stall") - b[0].startsWith("stall"))) root.append(svg("path", { class: key, d }));
    if (!state.aligned && timeline.shade) shade(root, x, timeline.shade, domain, height);
    const box = svg("rect", { class: "hover", visibility: "hidden", x: MARGIN.left, width: width - MARGIN.left - MARGIN.right, height: thick });
    root.append(box);
    return {
      root, count: timeline.rows.length, clear: () => box.setAttribute("visibility", "hidden"),
      hit(px, py) {
        const place = Math.floor((py - MARGIN.top) / thick);
        return place >= 0 && place < timeline.rows.length ? place : null;
      },
      show(place) { build(box, { y: y(place), visibility: "visible" }, []); return place; },
    };
  };
  const keys = (place) => {
    if (place === null) return used.map(([name, text]) => html("span", { class: "key" }, swatch(name, "box"), text));
    const row = timeline.rows[place];
    const parts = [["scheduled at", withUnit(row[3], "s")], ["dispatch lag", withUnit(span(row[3], row[4]), "ms")], ["TTFT", withUnit(span(row[4], row[5]), "ms")], ["E2EL", withUnit(span(row[4], row[6]), "ms")]];
    return [html("b", {}, `request ${row[0]}, ${status(row)}, ${phase(row)}`), ...parts.map(([name, text]) => html("span", { class: "key" }, name, html("b", {}, text)))];
  };
  const table = () => [
    ["request", "status", "phase", "scheduled, s", "dispatch lag, ms", "TTFT, ms", "E2EL, ms"],
    timeline.rows.map((row) => [String(row[0]), status(row), phase(row), row[3], span(row[3], row[4]), span(row[4], row[5]), span(row[4], row[6])]),
  ];
  const { redraw } = figure(host, timeline, { size: "wide", draw, keys, table, controls: toggle });
  toggle.addEventListener("click", () => {
    state.aligned = !state.aligned;
    toggle.setAttribute("aria-pressed", String(state.aligned));
    redraw();
  });
}

/** A label at the first side of its point where it covers no other point or label. */
function labelBeside(text, px, py, taken, width) {
  const long = text.length * 6.6;
  const sides = [[9, -8, "start"], [-9, -8, "end"], [9, 17, "start"], [-9, 17, "end"], [14, 4, "start"], [-14, 4, "end"]].map(([dx, dy, anchor]) => {
    const left = anchor === "start" ? px + dx : px + dx - long;
    return { dx, dy, anchor, left, right: left + long, top: py + dy - 10, bottom: py + dy + 2 };
  });
  const free = (box) => box.left > MARGIN.left && box.right < width && !taken.some((other) => box.left < other.right && other.left < box.right && box.top < other.bottom && other.top < box.bottom);
  const side = sides.find(free) ?? sides[px > width / 2 ? 1 : 0];
  taken.push(side);
  return svg("text", { class: "label", x: px + side.dx, y: py + side.dy, "text-anchor": side.anchor }, text);
}

function paretoFigure(host, pareto) {
  const points = [...pareto.points].sort((a, b) => a.x - b.x);
  const draw = (width) => {
    const height = 330;
    const x = scale("linear", [0, extent(points.map((point) => point.x), 0)[1] * 1.08], [MARGIN.left, width - MARGIN.right]);
    const y = scale("linear", [0, extent(points.map((point) => point.y), 0)[1] * 1.1], [height - MARGIN.bottom, MARGIN.top]);
    const root = frame(width, height, x, y, { x: `${pareto.x}, ${pareto.x_unit}` });
    root.append(svg("text", { class: "title", x: MARGIN.left + 4, y: MARGIN.top + 4 }, `${pareto.y}, ${pareto.y_unit}`));
    const front = points.filter((point) => point.frontier);
    root.append(svg("path", { class: "line main", d: path(front.map((point) => point.x), front.map((point) => point.y), x, y) }));
    const taken = points.map((point) => ({ left: x(point.x) - 6, right: x(point.x) + 6, top: y(point.y) - 6, bottom: y(point.y) + 6 }));
    for (const point of points) {
      root.append(svg("circle", { class: point.trusted ? `point ${point.frontier ? "main" : "variant"}` : "hollow", cx: x(point.x), cy: y(point.y), r: 5 }));
      root.append(labelBeside(point.label, x(point.x), y(point.y), taken, width));
    }
    const ring = svg("circle", { class: "hover", visibility: "hidden", r: 9 });
    root.append(ring);
    return {
      root, count: points.length, clear: () => ring.setAttribute("visibility", "hidden"),
      hit(px, py) {
        const distances = points.map((point) => Math.hypot(x(point.x) - px, y(point.y) - py));
        const best = distances.indexOf(Math.min(...distances));
        return distances[best] < 60 ? best : null;
      },
      show(place) { build(ring, { cx: x(points[place].x), cy: y(points[place].y), visibility: "visible" }, []); return place; },
    };
  };
  const keys = (place) => {
    if (place === null) return [html("span", { class: "key" }, swatch("main"), "frontier")];
    const point = points[place];
    return [html("b", {}, point.label), html("span", { class: "key" }, pareto.x, html("b", {}, withUnit(point.x, "tokens/s"))), html("span", { class: "key" }, pareto.y, html("b", {}, withUnit(point.y, pareto.y_unit))), point.trusted ? "trusted" : "client-bound"];
  };
  const table = () => [["load", `${pareto.x}, ${pareto.x_unit}`, `${pareto.y}, ${pareto.y_unit}`, "on the frontier", "verdict", "n"], points.map((point) => [point.label, point.x, point.y, point.frontier ? "yes" : "no", point.trusted ? "trusted" : "client-bound", point.n])];
  figure(host, pareto, { size: "wide", draw, keys, table });
}

function drawLoad(load) {
  const host = document.querySelector(`[data-charts="${load.index}"]`);
  if (!host || host.childElementCount) return;
  const group = (title) => { const head = html("h3", { class: "group" }, title); host.append(head); return head; };
  const cdfs = ["cdf-ttft", "cdf-itl", "cdf-tpot", "cdf-e2el", "cdf-lag"].map((id) => load.charts.find((chart) => chart.id === id)).filter(Boolean);
  if (cdfs.length) {
    const tail = html("button", { type: "button", "aria-pressed": "false" }, "Spread the tail");
    group("Distributions").append(tail);
    const figures = lineFigures(host, cdfs);
    tail.addEventListener("click", () => {
      settings.tail = !settings.tail;
      tail.setAttribute("aria-pressed", String(settings.tail));
      figures.forEach(({ redraw }) => redraw());
    });
  }
  group("Over time");
  lineFigures(host, load.charts.filter((chart) => chart.id === "time-ttft"));
  lineFigures(host, load.charts.filter((chart) => chart.id.startsWith("time-") && chart.id !== "time-ttft"));
  if (load.heat) heatFigure(host, load.heat);
  if (load.timeline) timelineFigure(host, load.timeline);
}

function choose(index) {
  for (const section of document.querySelectorAll("section.load")) section.hidden = section.dataset.load !== String(index);
  const load = DATA.loads.find((candidate) => candidate.index === index);
  if (load) drawLoad(load);
}

function picker() {
  const set = html("fieldset", {}, html("legend", {}, "Load point"));
  const inputs = DATA.loads.map((load) => {
    const input = html("input", { type: "radio", name: "load", value: load.index });
    input.addEventListener("change", () => { history.replaceState(null, "", `#load-${load.index}`); choose(load.index); });
    set.append(html("label", {}, input, html("span", {}, load.arrival)));
    return input;
  });
  document.getElementById("picker").append(set);
  const follow = (scroll) => {
    const wanted = /^#load-(\d+)$/.exec(location.hash);
    const index = wanted && DATA.loads.some((load) => load.index === Number(wanted[1])) ? Number(wanted[1]) : DATA.loads[0].index;
    inputs.forEach((input) => { input.checked = Number(input.value) === index; });
    if (wanted || !scroll) choose(index);
    if (wanted && scroll) document.getElementById("picker").scrollIntoView();
  };
  window.addEventListener("hashchange", () => follow(true));
  follow(false);
}

function themes() {
  const button = document.getElementById("theme"), names = ["auto", "light", "dark"];
  let chosen = "auto";
  try { chosen = names.find((name) => name === localStorage.getItem("theme")) ?? "auto"; } catch { /* a file may have no storage */ }
  const apply = () => {
    if (chosen === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = chosen;
    button.textContent = `Theme: ${chosen}`;
  };
  button.addEventListener("click", () => {
    chosen = names[(names.indexOf(chosen) + 1) % names.length];
    try { localStorage.setItem("theme", chosen); } catch { /* the choice lasts as long as the page */ }
    apply();
  });
  button.hidden = false;
  apply();
}

themes();
document.querySelectorAll("table.sortable").forEach(makeSortable);
const sweepHost = document.querySelector('[data-charts="sweep"]');
if (sweepHost) {
  if (DATA.pareto) paretoFigure(sweepHost, DATA.pareto);
  lineFigures(sweepHost, DATA.sweep.filter((chart) => chart.y_unit === "ms"));
  lineFigures(sweepHost, DATA.sweep.filter((chart) => chart.y_unit !== "ms"));
}
if (DATA.loads.length > 1) picker(); else if (DATA.loads.length) choose(DATA.loads[0].index);
document.documentElement.dataset.drawn = "yes";
