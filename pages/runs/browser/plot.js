// One chart by plotly.js: axes, zoom and drawing are its; labels that keep clear of each other, tips and keys are ours.
// Colours come from the page's theme; whoever cannot see it gets the alternative text and, on arrow keys, point by point.

const pen = document.createElement("canvas").getContext("2d"); // measures words

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

function fitted(text, width) {
  let kept = text;
  while (kept.length > 3 && pen.measureText(kept === text ? text : kept + "…").width > width) kept = kept.slice(0, -1);
  return kept === text ? text : kept.trimEnd() + "…";
}

function broken(title, width) {
  if (pen.measureText(title).width <= width) return [title];
  return title.includes("; ") ? title.split(/(?<=;) /) : title.split(/ (?=of )/);
}

// plotly.js, once for a tab.
function library(address) {
  return (window.upvitPlotly ??= new Promise((resolve, reject) => {
    const script = Object.assign(document.createElement("script"), { src: new URL(address, document.baseURI).href });
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => { delete window.upvitPlotly; reject(new Error(`${script.src} did not load.`)); };
    document.head.append(script);
  }));
}

class Plot {
  // chart: {key, larger, x: {title, zero}, y: {title, log}, lines, points, rules, labels, alt}
  constructor(host, height) {
    Object.assign(this, { host, height, zoom: null, labels: [] });
    host.style.height = `${height}px`;
    host.innerHTML =
      '<div class="plot" tabindex="0" role="img" aria-roledescription="chart"></div><div class="tip" hidden></div>' +
      '<div class="said" role="status" aria-live="polite"></div><button class="whole" type="button" hidden>Whole chart</button>';
    [this.plot, this.tip, this.said, this.whole] = host.children;
    this.plot.addEventListener("keydown", (event) => this.key(event));
    this.plot.addEventListener("blur", () => this.point(null));
    this.whole.addEventListener("click", () => { this.plot.focus(); this.range(null); });
    host.addEventListener("transitionend", ({ target }) => target === host && this.made && this.paint()); // another theme
    this.watch = new ResizeObserver(() => this.made && host.clientWidth && Plotly.Plots.resize(this.plot));
    this.watch.observe(host);
  }

  leave() {
    this.watch.disconnect();
    if (this.made) Plotly.purge(this.plot);
  }

  async draw(chart) {
    if (this.chart && this.chart.key !== chart.key) this.zoom = null;
    this.chart = chart;
    const same = this.told === (this.told = JSON.stringify(chart));
    if (same && this.made) return;
    this.plot.setAttribute("aria-label", chart.alt + " Arrow keys go from point to point; drag to zoom.");
    if (this.made) return this.paint();
    try {
      await library(this.host.closest("[data-plotly]").dataset.plotly);
    } catch {
      this.plot.textContent = "The charts' library did not arrive: load this page again.";
      return;
    }
    if (this.made || !this.host.isConnected) return;
    this.paint();
    this.made = true;
    this.plot.on("plotly_hover", ({ points: [{ curveNumber, pointNumber }] }) => this.point(this.picked[curveNumber][pointNumber]));
    this.plot.on("plotly_unhover", () => this.point(null));
    this.plot.on("plotly_afterplot", () => this.label());
    this.plot.on("plotly_relayout", () => this.zoomed());
    this.plot.on("plotly_doubleclick", () => this.range(null));
    this.label();
  }

  // The picture, from what draw() was given last.
  paint() {
    const { chart, host, height } = this, style = getComputedStyle(host), large = (this.large = chart.larger || 1);
    const colour = (name) => style.getPropertyValue(`--st-${name}`).trim();
    const theme = (this.theme = {
      text: colour("text-color"), quiet: colour("gray-text-color"), grid: colour("border-color"), surface: colour("background-color"),
    });
    this.font = { family: style.fontFamily, size: 13 * large, color: theme.text };
    pen.font = `${this.font.size}px ${this.font.family}`;
    const points = chart.points || [], margin = { l: 12 * large, r: 14 * large, t: 14 * large, b: 48 * large };
    const groups = [points.filter(({ size }) => !size), points.filter(({ size }) => size)]; // tips without marks, and marks
    const lines = chart.lines.map((line) => ({
      mode: "lines", hoverinfo: "skip", x: line.at.map(([x]) => x), y: line.at.map(([, y]) => y), opacity: line.opacity ?? 1,
      fill: line.fill ? "toself" : "none", fillcolor: line.fill ? `${line.colour}33` : undefined,
      line: { color: theme[line.colour] || line.colour, width: (line.width ?? 2) * large, dash: line.dash ? line.dash.map((px) => `${px}px`).join() : "solid" },
    }));
    const marks = groups.map((group, i) => ({
      mode: i ? "markers" : "none", hoverinfo: "none", x: group.map(({ x }) => x), y: group.map(({ y }) => y), cliponaxis: false,
      marker: !i ? {} : {
        symbol: group.map(({ shape, hollow }) => (shape || "circle") + (hollow ? "-open" : "")),
        size: group.map(({ size }) => 2 * size * large), color: group.map((point) => theme[point.colour] || point.colour),
        opacity: group.map(({ opacity = 1 }) => opacity), line: { width: group.map(({ hollow }) => (hollow ? 2 : 0)) },
      },
    }));
    this.picked = [...lines.map(() => []), ...groups];
    const axis = ({ title, zero, log, range, ticks, suffix }, zoom, room, apart) => ({
      title: { text: broken(title, room).map((part) => escaped(fitted(part, room))).join("<br>"), font: { size: this.font.size, color: theme.quiet }, standoff: 8 },
      tickfont: { size: 12 * large, color: theme.quiet }, tickangle: 0, nticks: Math.ceil(room / apart / large), automargin: "left",
      ticks: "outside", ticklen: 6, tickcolor: theme.surface,
      type: log ? "log" : "linear", rangemode: zero ? "tozero" : "normal", gridcolor: theme.grid, zeroline: false,
      exponentformat: "none", separatethousands: true, ticksuffix: suffix || "", ...(ticks && !zoom ? { tickvals: ticks } : {}),
      ...(zoom || range ? { range: [...(zoom || range)], autorange: false } : { autorange: true }),
    });
    Plotly.react(this.plot, [...lines, ...marks], {
      height, margin, font: this.font, paper_bgcolor: theme.surface, plot_bgcolor: theme.surface, showlegend: false,
      hovermode: "closest", hoverdistance: 14, dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      xaxis: axis(chart.x, this.zoom?.x, host.clientWidth - margin.l - margin.r, 80),
      yaxis: axis(chart.y, this.zoom?.y, height - margin.b, 40), annotations: this.labels,
      shapes: (chart.rules || []).map(({ x, y, strong }) => ({
        type: "line", line: strong ? { color: theme.text, width: 1.6 * large, dash: "7px,5px" } : { color: theme.quiet, width: 1, dash: "2px,4px" }, opacity: 0.8, layer: "below",
        ...(x === undefined ? { xref: "paper", x0: 0, x1: 1, y0: y, y1: y } : { yref: "paper", y0: 0, y1: 1, x0: x, x1: x }),
      })),
    }, { displayModeBar: false, showTips: false, doubleClick: false });
    this.whole.hidden = !this.zoom;
  }

  // Each label takes the first place near its point that is free of other labels and of marks that carry one.
  label() {
    const { chart, large, plot, font: { size } } = this, { xaxis, yaxis } = plot._fullLayout, gap = 9 * large, line = 1.4 * size, taken = [], found = [];
    pen.font = `${size}px ${this.font.family}`;
    for (const point of (chart.points || []).filter(({ solid }) => solid)) {
      const radius = point.size * large;
      taken.push([xaxis.d2p(point.x) - radius, yaxis.d2p(point.y) - radius, 2 * radius, 2 * radius]);
    }
    for (const { x, y, text, colour, above, after, bold } of chart.labels || []) {
      pen.font = `${bold ? "bold " : ""}${size}px ${this.font.family}`;
      const px = xaxis.d2p(x), py = yaxis.d2p(y), words = fitted(text, xaxis._length * 0.45), width = pen.measureText(words).width;
      if (px < -1 || px > xaxis._length + 1 || py < -1 || py > yaxis._length + 1) continue;
      const left = Math.min(Math.max(px - width / 2, 0), xaxis._length - width), sides = above ? [-1, 1] : [1, -1];
      const over = (step, side) => [left, py + side * (gap + step * line) - (side < 0 ? size : 0)];
      const right = [px + gap, py - size / 2];
      const places = [...(after ? [right] : []), ...sides.map((side) => over(0, side)), right, [px - gap - width, py - size / 2]];
      for (let step = 1; step < 6; step++) places.push(over(step, 1), over(step, -1));
      const place = places.find(([at, from]) => at >= 0 && at + width <= xaxis._length && from >= -8 && from + size <= yaxis._length + 4 &&
        taken.every(([l, t, w, h]) => at > l + w || at + width < l || from > t + h || from + size < t));
      if (!place) continue;
      taken.push([place[0] - 3, place[1] - line + size, width + 6, 2 * line - size]);
      const dx = place[0] + width / 2 - px, dy = place[1] + size / 2 - py, far = Math.abs(dy) > gap + size;
      found.push({
        text: bold ? `<b>${escaped(words)}</b>` : escaped(words), xref: "paper", yref: "paper", x: px / xaxis._length, y: 1 - py / yaxis._length, ax: dx, ay: dy, borderpad: 0,
        font: { color: this.theme[colour || "text"] || colour }, arrowhead: 0, arrowwidth: 1, arrowcolor: far ? this.theme.quiet : "rgba(0,0,0,0)",
      });
    }
    if (JSON.stringify(found) === JSON.stringify(this.labels)) return;
    this.labels = found;
    Plotly.relayout(plot, { annotations: found });
  }

  zoomed() {
    const { xaxis, yaxis } = this.plot._fullLayout;
    const whole = ({ autorange, range }, home) => (home ? range.every((end, i) => Math.abs(end - home[i]) < 1e-6 * (home[1] - home[0])) : autorange);
    this.zoom = whole(xaxis, this.chart.x.range) && whole(yaxis, this.chart.y.range) ? null : { x: [...xaxis.range], y: [...yaxis.range] };
    this.whole.hidden = !this.zoom;
  }

  range(zoom) {
    if (zoom) return Plotly.relayout(this.plot, { "xaxis.range": zoom.x, "yaxis.range": zoom.y });
    this.zoom = null;
    this.paint();
  }

  point(point) {
    this.tip.hidden = !point;
    if (!point) return;
    this.tip.innerHTML = point.tip().map(([name, value]) => `<span>${escaped(name)}</span><b>${escaped(value)}</b>`).join("");
    const { offsetWidth, offsetHeight } = this.tip, { xaxis, yaxis } = this.plot._fullLayout;
    const x = xaxis._offset + xaxis.d2p(point.x), y = yaxis._offset + yaxis.d2p(point.y);
    this.tip.style.left = `${Math.max(x + 14 + offsetWidth > this.host.clientWidth ? x - 14 - offsetWidth : x + 14, 0)}px`;
    this.tip.style.top = `${Math.max(Math.min(y - offsetHeight / 2, this.height - offsetHeight), 0)}px`;
  }

  // Left and right: the next point of a run; up and down: another run; + and -: nearer and farther; Escape: the whole.
  key(event) {
    if (!this.made) return;
    const points = (this.chart.points || []).filter(({ tip }) => tip), runs = [...new Set(points.map(({ run }) => run))];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.range(null), this.point(null);
    else if (event.key === "+" || event.key === "-") {
      const nearer = ({ range: [low, high] }) => [-1, 1].map((side) => (low + high) / 2 + (side * (high - low) * (event.key === "+" ? 0.6 : 1 / 0.6)) / 2);
      this.range({ x: nearer(this.plot._fullLayout.xaxis), y: nearer(this.plot._fullLayout.yaxis) });
    } else if ((step || turn) && points.length) {
      const at = (this.chosen ??= { run: runs[0], place: -1 });
      if (turn) at.run = runs[(runs.indexOf(at.run) + turn + runs.length) % runs.length];
      const own = points.filter(({ run }) => run === at.run);
      at.place = Math.min(Math.max(at.place + (step || 0), 0), own.length - 1);
      this.point(own[at.place]);
      this.said.textContent = own[at.place].tip().map((pair) => pair.join(" ")).join(", ");
    } else return;
    event.preventDefault();
  }
}
