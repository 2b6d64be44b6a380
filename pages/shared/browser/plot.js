// One chart on a canvas: axes, lines, points, labels that keep clear of each other, tips, zoom, and keys for all of it.
// Colours come from the page's theme; whoever cannot see it gets the alternative text and, on arrow keys, point by point.

const STAR = [...Array(10).keys()].map((i) => {
  const radius = i % 2 ? 0.382 : 1, angle = (i * Math.PI) / 5 - Math.PI / 2;
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
});
const NEAR = 14; // pixels within which a point is meant

function escaped(text) {
  return String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
}

function number(value, digits = 4) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "";
  const rounded = Number(value.toPrecision(digits));
  return Math.abs(rounded) >= 1e-4 || rounded === 0
    ? rounded.toLocaleString("en-US", { maximumFractionDigits: 6 })
    : rounded.toExponential();
}

function ticks([low, high], count, log) {
  if (log) {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++)
      for (const digit of [1, 2, 5]) found.push(digit * 10 ** power);
    const inside = found.filter((value) => value >= low && value <= high);
    if (inside.length > 1) return inside;
  }
  const rough = (high - low) / Math.max(count, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function domain(values, { zero = false, log = false } = {}) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (low > high) [low, high] = log ? [1, 10] : [0, 1];
  if (zero) low = Math.min(low, 0);
  if (low === high) [low, high] = log ? [low / 1.5, high * 1.5] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  return [low, high];
}

class Plot {
  // chart: {key, x: {title, zero}, y: {title, log}, padding, lines, points, rules, labels, alt}
  constructor(host, height) {
    this.host = host;
    this.height = height;
    this.zoom = null;
    host.innerHTML =
      '<canvas tabindex="0" role="img" aria-roledescription="chart"></canvas><div class="box" hidden></div>' +
      '<div class="tip" hidden></div><div class="said" role="status" aria-live="polite"></div>' +
      '<button class="whole" type="button" hidden>Whole chart</button>';
    [this.canvas, this.box, this.tip, this.said, this.whole] = host.children;
    this.canvas.addEventListener("pointermove", (event) => this.moved(event));
    this.canvas.addEventListener("pointerdown", (event) => this.pressed(event));
    this.canvas.addEventListener("pointerup", (event) => this.released(event));
    this.canvas.addEventListener("pointerleave", () => this.point(null));
    this.canvas.addEventListener("dblclick", () => this.unzoom());
    this.canvas.addEventListener("keydown", (event) => this.key(event));
    this.canvas.addEventListener("blur", () => this.point(null));
    this.whole.addEventListener("click", () => this.unzoom());
    this.watch = new ResizeObserver(() => this.chart && this.paint());
    this.watch.observe(host);
  }

  draw(chart) {
    if (this.chart && this.chart.key !== chart.key) this.zoom = null;
    this.chart = chart;
    this.paint();
  }

  // The picture, from what draw() was given last.
  paint() {
    const { chart, canvas } = this, ratio = window.devicePixelRatio || 1;
    const style = getComputedStyle(this.host), large = chart.larger || 1, height = this.height;
    const width = Math.max(this.host.clientWidth, 120);
    const colour = (name) => style.getPropertyValue(`--st-${name}`).trim();
    this.colours = { text: colour("text-color"), quiet: colour("gray-text-color"), grid: colour("border-color"), surface: colour("background-color") };
    this.fontOf = (size) => `${Math.round(size * large)}px ${style.fontFamily}`;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    canvas.setAttribute("aria-label", chart.alt + " Arrow keys go from point to point; drag to zoom.");
    const c = (this.c = canvas.getContext("2d"));
    c.setTransform(ratio, 0, 0, ratio, 0, 0);
    c.fillStyle = this.colours.surface;
    c.fillRect(0, 0, width, height);
    this.scales(width, height, large);
    this.axes(large);
    const { left, top, right, bottom } = this.area;
    c.save();
    c.beginPath();
    c.rect(left, top - 8, right - left, bottom - top + 16);
    c.clip();
    for (const rule of chart.rules || []) this.rule(rule);
    for (const line of chart.lines || []) this.line(line, large);
    for (const point of this.shown()) this.mark(point, large);
    c.restore();
    this.labels(large);
    this.whole.hidden = !this.zoom;
  }

  scales(width, height, large) {
    const { chart, c } = this, values = { x: [], y: [] };
    for (const line of chart.lines || []) for (const [x, y] of line.at) values.x.push(x), values.y.push(y);
    for (const point of chart.points || []) values.x.push(point.x), values.y.push(point.y);
    const whole = { x: domain(values.x, chart.x), y: domain(values.y, chart.y) };
    c.font = this.fontOf(12);
    this.domains = this.zoom || whole;
    const names = ticks(whole.y, 5, chart.y.log).map((value) => c.measureText(number(value)).width);
    c.font = this.fontOf(13);
    const tall = height - 20 * large, { title } = chart.y;
    this.beside = c.measureText(title).width <= tall ? [title] : title.split(/(?<=;) /);
    const area = (this.area = { left: Math.max(...names, 20) + (14 + 18 * this.beside.length) * large, right: width - 14, top: 12 * large, bottom: height - 46 * large });
    const room = this.zoom ? 0 : chart.padding;
    const scale = ([low, high], from, to, log, inner, first) => {
      const f = log ? Math.log : (value) => value, start = from + Math.sign(to - from) * (first ? inner : 0), end = to - Math.sign(to - from) * inner;
      const forth = (value) => start + ((f(value) - f(low)) / (f(high) - f(low))) * (end - start);
      const back = (at) => { const value = f(low) + ((at - start) / (end - start)) * (f(high) - f(low)); return log ? Math.exp(value) : value; };
      return { forth, back, shown: [back(from), back(to)] };
    };
    this.x = scale(this.domains.x, area.left, area.right, chart.x.log, room, !chart.x.zero);
    this.y = scale(this.domains.y, area.bottom, area.top, chart.y.log, room, true);
  }

  axes(large) {
    const { c, area, chart, colours } = this, { left, right, top, bottom } = area;
    c.font = this.fontOf(12);
    c.lineWidth = 1;
    c.textBaseline = "top";
    c.textAlign = "center";
    let free = -Infinity;
    for (const value of ticks(this.x.shown, Math.max((right - left) / (80 * large), 2), chart.x.log)) {
      const at = Math.round(this.x.forth(value)) + 0.5, half = c.measureText(number(value)).width / 2;
      this.stroke(colours.grid, () => { c.moveTo(at, top); c.lineTo(at, bottom); });
      if (at - half < free || at + half > right + 12) continue;
      c.fillStyle = colours.quiet;
      c.fillText(number(value), at, bottom + 6);
      free = at + half + 10;
    }
    c.textBaseline = "middle";
    c.textAlign = "right";
    for (const value of ticks(this.y.shown, Math.max((bottom - top) / (50 * large), 3), chart.y.log)) {
      const at = Math.round(this.y.forth(value)) + 0.5;
      this.stroke(colours.grid, () => { c.moveTo(left, at); c.lineTo(right, at); });
      c.fillStyle = colours.quiet;
      c.fillText(number(value), left - 6, at);
    }
    c.font = this.fontOf(13);
    c.textAlign = "center";
    c.textBaseline = "bottom";
    c.fillText(this.fitted(chart.x.title, right - left), (left + right) / 2, this.height - 2);
    c.save();
    const longest = Math.max(...this.beside.map((words) => c.measureText(words).width));
    c.translate(2, Math.max((top + bottom) / 2, longest / 2 + 4));
    c.rotate(-Math.PI / 2);
    c.textBaseline = "top";
    this.beside.forEach((words, i) => c.fillText(this.fitted(words, this.height - 20 * large), 0, i * 17 * large));
    c.restore();
  }

  stroke(colour, path, { width = 1, dash = [], opacity = 1 } = {}) {
    const { c } = this;
    c.beginPath();
    path();
    c.strokeStyle = colour;
    c.lineWidth = width;
    c.setLineDash(dash);
    c.globalAlpha = opacity;
    c.stroke();
    c.setLineDash([]);
    c.globalAlpha = 1;
  }

  rule({ x, y }) {
    const { c, area } = this;
    const path = () => x !== undefined
      ? (c.moveTo(this.x.forth(x), area.top), c.lineTo(this.x.forth(x), area.bottom))
      : (c.moveTo(area.left, this.y.forth(y)), c.lineTo(area.right, this.y.forth(y)));
    this.stroke(this.colours.quiet, path, { dash: [2, 4], opacity: 0.8 });
  }

  // Of many points in one column of pixels the first, the lowest, the highest and the last are drawn.
  line({ at, colour, width = 2, dash, opacity }, large) {
    const { c } = this, kept = [];
    let column = null, group = [];
    const close = () => {
      if (group.length <= 4) return kept.push(...group);
      const low = group.reduce((a, b) => (b[1] > a[1] ? b : a)), high = group.reduce((a, b) => (b[1] < a[1] ? b : a));
      kept.push(...[...new Set([group[0], low, high, group.at(-1)])]);
    };
    for (const [x, y] of at) {
      const point = [this.x.forth(x), this.y.forth(y)];
      if (Math.round(point[0]) !== column) { close(); group = []; column = Math.round(point[0]); }
      group.push(point);
    }
    close();
    this.stroke(this.colours[colour] || colour, () => kept.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y))), { width: width * large, dash, opacity });
  }

  shown() {
    return (this.chart.points || []).filter((point) => point.size > 0);
  }

  mark({ x, y, colour, size, shape, hollow, opacity = 1 }, large) {
    const { c } = this, px = this.x.forth(x), py = this.y.forth(y), radius = size * large;
    c.beginPath();
    if (shape === "star") STAR.forEach(([dx, dy], i) => c[i ? "lineTo" : "moveTo"](px + radius * dx, py + radius * dy));
    else if (shape === "square") c.rect(px - radius, py - radius, 2 * radius, 2 * radius);
    else if (shape === "diamond") [[0, -1], [0.8, 0], [0, 1], [-0.8, 0]].forEach(([dx, dy], i) => c[i ? "lineTo" : "moveTo"](px + radius * dx, py + radius * dy));
    else c.arc(px, py, radius, 0, 2 * Math.PI);
    c.closePath();
    c.globalAlpha = opacity;
    c.fillStyle = c.strokeStyle = this.colours[colour] || colour;
    c.lineWidth = 2;
    if (hollow) c.stroke();
    else c.fill();
    c.globalAlpha = 1;
  }

  // Each label takes the first place near its point that is free of other labels and of marks that carry one.
  labels(large) {
    const { c, area } = this, size = 13 * large, taken = [];
    c.font = this.fontOf(13);
    c.textAlign = "left";
    c.textBaseline = "top";
    for (const { x, y, size: radius } of this.shown().filter((point) => point.solid))
      taken.push([this.x.forth(x) - radius * large, this.y.forth(y) - radius * large, 2 * radius * large, 2 * radius * large]);
    for (const { x, y, text, colour = "text", above } of this.chart.labels || []) {
      const px = this.x.forth(x), py = this.y.forth(y);
      if (px < area.left - 1 || px > area.right + 1 || py < area.top - 9 || py > area.bottom + 9) continue;
      const words = this.fitted(text, (area.right - area.left) * 0.45), width = c.measureText(words).width, gap = 9 * large;
      const left = Math.min(Math.max(px - width / 2, area.left), area.right - width);
      const below = [left, py + gap], over = [left, py - gap - size];
      const places = above ? [over, below] : [below, over];
      places.push([px + gap, py - size / 2], [px - gap - width, py - size / 2]);
      for (let step = 1; step < 6; step++)
        for (const side of [1, -1]) places.push([left, py + side * (gap + step * (size + 2)) - (side < 0 ? size : 0)]);
      const fits = ([at, from]) => at >= area.left && at + width <= area.right && from >= area.top - 8 && from + size <= area.bottom + 4 &&
        taken.every(([l, t, w, h]) => at > l + w || at + width < l || from > t + h || from + size < t);
      const place = places.find(fits);
      if (!place) continue;
      taken.push([place[0] - 3, place[1] - 1, width + 6, size + 2]);
      const far = Math.abs(place[1] + size / 2 - py) > gap + size;
      if (far) this.stroke(this.colours.quiet, () => { c.moveTo(px, py); c.lineTo(Math.min(Math.max(px, place[0]), place[0] + width), place[1] > py ? place[1] : place[1] + size); }, { opacity: 0.6 });
      c.fillStyle = c.strokeStyle = this.colours.surface;
      c.lineWidth = 3;
      c.globalAlpha = 0.8;
      c.strokeText(words, ...place);
      c.globalAlpha = 1;
      c.fillStyle = this.colours[colour] || colour;
      c.fillText(words, ...place);
    }
  }

  fitted(text, width) {
    const { c } = this;
    if (c.measureText(text).width <= width) return text;
    let kept = text;
    while (kept.length > 3 && c.measureText(kept + "…").width > width) kept = kept.slice(0, -1);
    return kept.trimEnd() + "…";
  }
}
