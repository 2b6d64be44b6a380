// What a pointer and keys do on a Plot: tips, zoom by dragging, and a walk from point to point.

Object.assign(Plot.prototype, {
  moved(event) {
    if (this.from) return this.drag(event);
    let best = null, distance = NEAR * NEAR;
    for (const point of this.chart.points || []) {
      const dx = this.x.forth(point.x) - event.offsetX, dy = this.y.forth(point.y) - event.offsetY;
      if (point.tip && dx * dx + dy * dy <= distance) [best, distance] = [point, dx * dx + dy * dy];
    }
    this.point(best);
  },

  point(point) {
    this.tip.hidden = !point;
    if (!point) return;
    this.tip.innerHTML = point.tip().map(([name, value]) => `<span>${escaped(name)}</span><b>${escaped(value)}</b>`).join("");
    const x = this.x.forth(point.x), y = this.y.forth(point.y), { offsetWidth, offsetHeight } = this.tip;
    this.tip.style.left = `${Math.max(x + 14 + offsetWidth > this.host.clientWidth ? x - 14 - offsetWidth : x + 14, 0)}px`;
    this.tip.style.top = `${Math.max(Math.min(y - offsetHeight / 2, this.height - offsetHeight), 0)}px`;
  },

  pressed(event) {
    if (event.button !== 0) return;
    this.from = [event.offsetX, event.offsetY];
    this.canvas.setPointerCapture(event.pointerId);
  },

  drag({ offsetX, offsetY }) {
    const [x, y] = this.from;
    this.point(null);
    this.box.hidden = Math.abs(offsetX - x) < 6 || Math.abs(offsetY - y) < 6;
    Object.assign(this.box.style, {
      left: `${Math.min(x, offsetX)}px`, top: `${Math.min(y, offsetY)}px`, width: `${Math.abs(offsetX - x)}px`, height: `${Math.abs(offsetY - y)}px`,
    });
  },

  released({ offsetX, offsetY }) {
    if (!this.from) return;
    const [x, y] = this.from;
    this.from = null;
    if (this.box.hidden) return;
    this.box.hidden = true;
    const sorted = (values) => values.sort((a, b) => a - b);
    this.zoom = { x: sorted([this.x.back(x), this.x.back(offsetX)]), y: sorted([this.y.back(y), this.y.back(offsetY)]) };
    this.paint();
  },

  unzoom() {
    const focused = this.whole.matches(":focus");
    this.zoom = null;
    this.paint();
    if (focused) this.canvas.focus();
  },

  // Left and right: the next point of a run; up and down: another run; + and -: nearer and farther; Escape: the whole.
  key(event) {
    const points = (this.chart.points || []).filter((point) => point.tip), runs = [...new Set(points.map((point) => point.run))];
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], turn = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.unzoom(), this.point(null);
    else if (event.key === "+" || event.key === "-") this.nearer(event.key === "+" ? 0.6 : 1 / 0.6);
    else if ((step || turn) && points.length) {
      const at = this.chosen || { run: runs[0], place: -1 };
      if (turn) at.run = runs[(runs.indexOf(at.run) + turn + runs.length) % runs.length];
      const own = points.filter((point) => point.run === at.run);
      at.place = Math.min(Math.max(at.place + (step || 0), 0), own.length - 1);
      this.chosen = at;
      this.point(own[at.place]);
      this.said.textContent = own[at.place].tip().map((pair) => pair.join(" ")).join(", ");
    } else return;
    event.preventDefault();
  },

  nearer(factor) {
    const half = (scale, [from, to]) => {
      const a = scale.back((from + to) / 2 - (factor * (to - from)) / 2), b = scale.back((from + to) / 2 + (factor * (to - from)) / 2);
      return [Math.min(a, b), Math.max(a, b)];
    };
    const { left, right, top, bottom } = this.area;
    this.zoom = { x: half(this.x, [left, right]), y: half(this.y, [top, bottom]) };
    this.paint();
  },
});
