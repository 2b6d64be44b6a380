// The charts of Runs from what this browser has been told of each run: a picture of all at first, then only new points.

const PHASES = ["teacher", "after surgery", "before training", "while training", "at the end"];

// Columns of one kind of rows, with how many rows of the file they stand for.
class Columns {
  constructor() {
    this.next = 0;
    this.count = 0;
    this.columns = {};
  }

  // False where rows before `from` never came.
  add([from, next, columns]) {
    if (from > this.next) return false;
    if (from < this.next) return next <= this.next;
    const added = Math.max(0, ...Object.values(columns).map((column) => column.length));
    for (const name of Object.keys(columns)) this.columns[name] ??= Array(this.count).fill(null);
    for (const [name, column] of Object.entries(this.columns))
      for (let i = 0; i < added; i++) column.push(columns[name] ? columns[name][i] : null);
    this.count += added;
    this.next = next;
    return true;
  }

  at(i, name) {
    return this.columns[name] ? this.columns[name][i] : null;
  }

  rows(...needed) {
    const found = [];
    for (let i = 0; i < this.count; i++) if (needed.every((name) => this.at(i, name) !== null)) found.push(i);
    return found;
  }
}

class Live {
  constructor() {
    this.plots = {};
  }

  // A place on the page for one of the charts, or that it is gone.
  place(name, host) {
    this.plots[name] = new Plot(host, Number(host.dataset.height));
    if (this.view && this.runs) this.draw();
  }

  leave(name) {
    this.plots[name]?.leave();
    delete this.plots[name];
  }

  // Everything, once; the same again changes nothing.
  picture(all) {
    if (this.epoch !== all.epoch) {
      this.epoch = all.epoch;
      this.runs = all.runs.map((run) => ({ ...run, evals: new Columns(), train: new Columns() }));
      all.runs.forEach((run, i) => { this.runs[i].evals.add(run.evals); this.runs[i].train.add(run.train); });
    }
    if (this.view) this.draw();
  }

  // What is new; false where something before it is missing.
  feed({ epoch, view, add }) {
    if (epoch !== this.epoch) return true;
    this.view = view;
    let whole = true;
    for (const part of add) {
      const run = this.runs.find(({ id }) => id === part.id);
      if (!run) continue;
      if (part.teacher) [run.teacher, run.whole] = [part.teacher, part.whole];
      for (const kind of ["evals", "train"]) if (part[kind]) whole = run[kind].add(part[kind]) && whole;
    }
    this.draw();
    return whole;
  }

  draw() {
    const { quantity, of } = this.view;
    const runs = this.runs.filter((run) => !of || run.data === of), { task, speed, loss, features } = this.plots;
    task?.draw(this.climb(runs, quantity));
    speed?.draw(this.speed(runs, quantity));
    loss?.draw(this.losses(runs, "loss"));
    features?.draw(this.losses(runs, "features"));
  }

  tips(run, i, quantity) {
    const { evals } = run, { titles } = this.view, at = (name) => evals.at(i, name);
    return [
      ["run", run.label], ["plan", run.plan], ["point", PHASES[at("phase")]], [titles.task, number(at(quantity))],
      [quantity === "top1" ? "test images" : "test tokens", number(at("images"), 9)],
      ["speed, × the original", number(this.times(run), 3)], [titles.speed, number(at("images_per_s"))], ["KL to the original, nats", number(at("kl_teacher"))], ["mean cosine to the original", number(at("cosine"))],
      ["epoch", number(at("epoch"))], ["step", number(at("step"), 9)], ["seconds of training", number(at("seconds"))],
    ].filter(([, value]) => value);
  }

  // How many times as fast as its original a run is: measured once, both in turns.
  times({ evals }) {
    const [first] = evals.rows("speedup");
    return first === undefined ? null : evals.at(first, "speedup");
  }

  originals(runs, quantity) {
    const named = Map.groupBy(runs.filter((run) => run.teacher && run.teacher[quantity] !== null), (run) => run.taught);
    return [...named].map(([label, group]) => {
      const last = group.at(-1).teacher, goal = last[quantity];
      const told = [["original", label], [this.view.titles.task, number(goal)], ["test images", number(last.images, 9)], ["device", last.device]];
      return { run: label, label, goal, tip: () => told.filter(([, value]) => value) };
    });
  }

  value(y, quantity) {
    return quantity === "top1" ? `${y.toFixed(1)} %` : number(y);
  }

  // The end on all test images, where those along the way are on a part of them: hollow squares.
  wholes(runs, quantity) {
    return runs.map((run) => `${run.label} ${number(run.whole[quantity])} of all ${number(run.whole.images, 9)}`);
  }

  wholeTip(run, quantity) {
    const { whole } = run;
    return [
      ["run, on all test images", run.label], ["plan", run.plan], [this.view.titles.task, number(whole[quantity])],
      [quantity === "top1" ? "test images" : "test tokens", number(whole.images, 9)], ["KL to the original, nats", number(whole.kl_teacher)], ["mean cosine to the original", number(whole.cosine)], ["step", number(whole.step, 9)],
    ].filter(([, value]) => value);
  }

  // Points of one run in a chart, in its colour; the last is the largest.
  marks(run, at, quantity, tip) {
    return at.map((place, order) => ({
      run: run.id, x: place.x, y: place.y, colour: run.colour, tip: tip ? () => tip(run, place.i) : () => this.tips(run, place.i, quantity),
      size: order === at.length - 1 ? 6.9 : 2.6, solid: order === at.length - 1, hollow: !order && at.length > 1 && !tip,
    }));
  }

  squares(runs, quantity, x) {
    return runs.filter((run) => run.whole && run.whole[quantity] !== null && x(run) !== null)
      .map((run) => ({ run: run.id, x: x(run), y: run.whole[quantity], colour: run.colour, size: 5, shape: "square", hollow: true, solid: true, tip: () => this.wholeTip(run, quantity) }));
  }

  axis(quantity) {
    const { titles } = this.view;
    return quantity === "top1" ? { title: titles.y, range: [0, 102], ticks: [0, 25, 50, 75, 100] } : { title: titles.y, log: true };
  }

  // The picture of the page: right answers over epochs, towards the original's, on axes that do not move.
  climb(runs, quantity) {
    const { titles, larger, expected } = this.view, end = Math.max(1, ...runs.map(({ epochs }) => Number(epochs))), stars = this.originals(runs, quantity);
    const paths = runs.map((run) => ({ run, at: run.evals.rows("epoch", quantity).map((i) => ({ i, x: run.evals.at(i, "epoch"), y: run.evals.at(i, quantity) })) })).filter(({ at }) => at.length);
    const told = paths.map(({ run, at }) => `${run.label} ${this.value(at.at(-1).y, quantity)} after ${number(at.at(-1).x, 3)} epochs`).concat(this.wholes(runs.filter(({ whole }) => whole), quantity)).join("; ");
    const bands = quantity === "top1" ? paths.filter(({ run }) => expected[run.id]).map(({ run, at }) => ({ run, from: at.at(-1), to: Number(run.epochs), band: expected[run.id] })) : [];
    return {
      key: `${quantity} ${end}`, larger, x: { title: "epochs over the training images", range: [-0.012 * end, 1.2 * end], ticks: even(end) }, y: this.axis(quantity),
      alt: `${titles.y} against epochs: ${told || "no run has been evaluated yet"}.`,
      rules: stars.map(({ goal }) => ({ y: goal, strong: true })),
      lines: [
        ...bands.map(({ run, from, to, band: [low, high] }) => ({ at: [[from.x, from.y], [to, high], [to, low], [from.x, from.y]], colour: run.colour, width: 0, fill: true })),
        ...paths.map(({ run, at }) => ({ at: at.map(({ x, y }) => [x, y]), colour: run.colour, width: 2.6 })),
      ],
      points: [
        ...paths.flatMap(({ run, at }) => this.marks(run, at, quantity)),
        ...this.squares(runs, quantity, (run) => run.whole.epoch),
        ...stars.map((star) => ({ ...star, x: 0.9 * end, y: star.goal, colour: "text", size: 8, shape: "star", solid: true })),
      ],
      labels: [
        ...paths.map(({ run, at }) => ({ ...at.at(-1), text: `${this.value(at.at(-1).y, quantity)} ${run.label}`, bold: true, colour: run.colour, after: true })),
        ...stars.map(({ label, goal }) => ({ x: 0.9 * end, y: goal, text: `original ${this.value(goal, quantity)}${stars.length > 1 ? ` ${label}` : ""}`, above: true })),
        ...bands.map(({ to, band: [low, high] }) => ({ x: to, y: high, text: `expected ${low.toFixed(0)}–${high.toFixed(0)} %`, colour: "quiet", after: true })),
      ],
    };
  }

  // The evaluations of elastic runs; each has a point for every size, from the whole model to the narrowest.
  ladders(runs) {
    const tip = (run, i, [removed, times, top1, speed, params, kl]) => [
      ["run", run.label], ["removed", `${number(removed)} %`], ["point", PHASES[run.evals.at(i, "phase")]], [this.view.titles.task, number(top1)],
      ["speed, × the whole", number(times, 3)], [this.view.titles.speed, number(speed)], ["parameters", number(params, 9)], ["KL to the original, nats", number(kl)], ["step", number(run.evals.at(i, "step"), 9)],
    ].filter(([, value]) => value);
    return runs.map((run) => ({ run, each: run.evals.rows("ladder").map((i) => run.evals.at(i, "ladder").map((size) => ({ x: size[1], y: size[2], tip: () => tip(run, i, size) }))) })).filter(({ each }) => each.length);
  }

  speed(runs, quantity) {
    const { titles, published, larger } = this.view, elastic = this.ladders(runs);
    const paths = runs.filter((run) => this.times(run) !== null && !elastic.some((own) => own.run === run))
      .map((run) => ({ run, at: run.evals.rows(quantity).map((i) => ({ i, x: this.times(run), y: run.evals.at(i, quantity) })) })).filter(({ at }) => at.length);
    const latest = paths.map(({ run, at }) => ({ ...at.at(-1), run })), stars = this.originals(runs, quantity);
    const sweeps = [...Map.groupBy(latest.filter(({ run }) => run.group), ({ run }) => run.group).values()].filter((group) => group.length > 1);
    const told = [...latest, ...elastic.flatMap(({ run, each }) => each.at(-1).map((at) => ({ ...at, run })))].map(({ run, x, y }) => `${run.label} ${this.value(y, quantity)} at ${number(x, 3)}×`).concat(this.wholes(runs.filter(({ whole }) => whole), quantity)).join("; ");
    const far = [...[...latest, ...elastic.flatMap(({ each }) => each.at(-1))].map(({ x }) => x), ...published.map(([, x]) => x)], low = Math.min(1, ...far), high = Math.max(2, ...far);
    return {
      key: `speed ${quantity}`, larger, x: { title: titles.x, range: [low - 0.08 * (high - low), high + 0.16 * (high - low)], suffix: "×" }, y: this.axis(quantity),
      alt: `${titles.y} against speed, times the original: ${told || "no run has been evaluated yet"}.`,
      rules: stars.map(({ goal }) => ({ y: goal })),
      lines: [
        ...sweeps.map((group) => ({ at: group.map(({ x, y }) => [x, y]).sort((a, b) => a[0] - b[0]), colour: "quiet", width: 1.6, dash: [5, 4] })),
        ...paths.map(({ run, at }) => ({ at: at.map(({ x, y }) => [x, y]), colour: run.colour })),
        ...elastic.flatMap(({ run, each }) => each.map((at, order) => ({
          at: at.map(({ x, y }) => [x, y]), colour: run.colour, ...(order === each.length - 1 && order ? { width: 2.6 } : order ? { width: 1, opacity: 0.3 } : { width: 1.6, dash: [5, 4] }),
        }))),
      ],
      points: [
        ...paths.flatMap(({ run, at }) => this.marks(run, at, quantity)),
        ...elastic.flatMap(({ run, each }) => [...new Set([each[0], each.at(-1)])].flatMap((sizes, now) => sizes.map((at) => ({ ...at, run: run.id, colour: run.colour, size: now ? 4.4 : 2.6, solid: !!now, hollow: !now })))),
        ...this.squares(runs, quantity, (run) => this.times(run)),
        ...stars.map((star) => ({ ...star, x: 1, y: star.goal, colour: "text", size: 10, shape: "star", solid: true })),
        ...published.map(([label, x, y, note]) => ({
          run: "published", x, y, colour: "quiet", size: 7, shape: "diamond", hollow: true, solid: true,
          tip: () => [["published", label], ["top-1, %", number(y)], ["times DeiT-B's speed, Titan Xp", number(x)], ["note", note]],
        })),
      ],
      labels: [
        ...paths.map(({ run, at }) => ({ ...at.at(-1), text: run.label, colour: run.colour, after: true })),
        ...elastic.map(({ run, each }) => ({ ...each.at(-1).at(-1), text: run.label, colour: run.colour })),
        ...stars.map(({ goal }) => ({ x: 1, y: goal, text: "original", above: true })),
        ...published.map(([label, x, y]) => ({ x, y, text: label, colour: "quiet", above: true })),
      ],
    };
  }

  losses(runs, quantity) {
    const title = this.view.titles[quantity], lines = runs.map((run) => ({ run, at: run.train.rows("step", quantity).map((i) => ({ i, x: run.train.at(i, "step"), y: run.train.at(i, quantity) })) })).filter(({ at }) => at.length);
    const tip = ({ label, train }, i) => [
      ["run", label], ["step", number(train.at(i, "step"), 9)], [title, number(train.at(i, quantity))], ["epoch", number(train.at(i, "epoch"))], ["seconds of training", number(train.at(i, "seconds"))],
    ].filter(([, value]) => value);
    const told = lines.map(({ run, at }) => `${run.label} ${number(at.at(-1).y)} at step ${number(at.at(-1).x, 9)}`).join("; ");
    return {
      key: quantity, larger: this.view.larger, x: { title: "step", zero: true }, y: { title }, alt: `${title} against step: ${told || "nothing yet"}.`,
      lines: lines.flatMap(({ run, at }) => [
        { at: at.map(({ x, y }) => [x, y]), colour: run.colour, width: 1, opacity: 0.3 },
        { at: smoothed(at), colour: run.colour, width: 2.2 },
      ]),
      points: lines.flatMap(({ run, at }) => this.marks(run, at, quantity, tip).map((mark, order) => ({ ...mark, size: order === at.length - 1 ? 4.4 : 0, solid: false }))),
    };
  }
}

// Means over a stretch that grows to a thirtieth of the line.
function smoothed(at) {
  const reach = Math.max(1, Math.round(at.length / 60));
  return at.map(({ x }, i) => {
    const near = at.slice(Math.max(0, i - reach), i + reach + 1);
    return [x, near.reduce((sum, { y }) => sum + y, 0) / near.length];
  });
}

// Ticks from 0 to the end at even numbers of epochs.
function even(end) {
  const step = [0.25, 0.5, 1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000].find((size) => end / size <= 6) || end;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, i) => i * step);
}

export default function ({ data }) {
  const hub = (window.upvitRuns ??= {});
  hub.hosts ??= {};
  const live = (hub.live ??= new Live());
  live.picture(JSON.parse(new TextDecoder().decode(data)));
  for (const [name, host] of Object.entries(hub.hosts)) if (live.plots[name]?.host !== host) live.place(name, host);
  hub.bring?.();
  return () => { for (const name of Object.keys(live.plots)) live.leave(name); if (hub.live === live) delete hub.live; };
}
