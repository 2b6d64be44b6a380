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
  constructor(root) {
    this.plots = {};
    for (const host of root.querySelectorAll("[data-chart]")) this.plots[host.dataset.chart] = new Plot(host, Number(host.dataset.height));
    this.grid = root.querySelector(".small");
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
    const runs = this.runs.filter((run) => !of || run.data === of);
    const features = runs.some((run) => run.train.rows("features").length);
    this.grid.classList.toggle("three", features);
    this.plots.features.host.hidden = !features;
    this.plots.speed.draw(this.speed(runs, quantity));
    this.plots.loss.draw(this.steps(runs, "loss", "train"));
    this.plots.task.draw(this.steps(runs, quantity, "evals"));
    if (features) this.plots.features.draw(this.steps(runs, "features", "train"));
  }

  tips(run, i, quantity) {
    const { evals } = run, { titles, relative } = this.view, at = (name) => evals.at(i, name);
    return [
      ["run", run.label], ["plan", run.plan], ["point", PHASES[at("phase")]], [titles.task, number(at(quantity))],
      [quantity === "top1" ? "test images" : "test tokens", number(at("images"), 9)],
      [relative ? "speed, × the teacher's" : "speed", number(at("images_per_s") / this.unit(run))], ["KL to the teacher, nats", number(at("kl_teacher"))],
      ["epoch", number(at("epoch"))], ["step", number(at("step"), 9)], ["seconds of training", number(at("seconds"))],
    ].filter(([, value]) => value);
  }

  unit(run) {
    return (this.view.relative && run.teacher && run.teacher.images_per_s) || 1;
  }

  teachers(runs, quantity) {
    const named = Map.groupBy(runs.filter((run) => run.teacher && run.teacher.images_per_s !== null && run.teacher[quantity] !== null), (run) => run.taught);
    return [...named].map(([label, group]) => {
      const speeds = group.map((run) => run.teacher.images_per_s).sort((a, b) => a - b), last = group.at(-1).teacher, half = speeds.length >> 1;
      const x = this.view.relative ? 1 : speeds.length % 2 ? speeds[half] : (speeds[half - 1] + speeds[half]) / 2;
      const told = [["teacher", label], [this.view.titles.task, number(last[quantity])], ["test images", number(last.images, 9)], ["speed, median over runs", number(x)], ["runs", group.length], ["device", last.device]];
      return { run: label, label, x, y: last[quantity], tip: () => told.filter(([, value]) => value) };
    });
  }

  // The end on all test images, where those along the way are on a part of them: hollow squares.
  wholes(runs, quantity) {
    return runs.map((run) => `${run.label} ${number(run.whole[quantity])} of all ${number(run.whole.images, 9)}`);
  }

  wholeTip(run, quantity) {
    const { whole } = run;
    return [
      ["run, on all test images", run.label], ["plan", run.plan], [this.view.titles.task, number(whole[quantity])],
      [quantity === "top1" ? "test images" : "test tokens", number(whole.images, 9)], ["KL to the teacher, nats", number(whole.kl_teacher)], ["step", number(whole.step, 9)],
    ].filter(([, value]) => value);
  }

  speed(runs, quantity) {
    const { titles, relative, published, larger } = this.view, better = quantity === "top1" ? 1 : -1;
    const paths = runs.map((run) => ({
      run, at: run.evals.rows("images_per_s", quantity).map((i) => ({ i, x: run.evals.at(i, "images_per_s") / this.unit(run), y: run.evals.at(i, quantity) })),
    })).filter(({ at }) => at.length);
    const latest = paths.map(({ run, at }) => ({ ...at.at(-1), run })), teachers = this.teachers(runs, quantity);
    const front = [];
    for (const point of [...latest, ...teachers].sort((a, b) => b.x - a.x || better * (b.y - a.y)))
      if (!front.length || better * (point.y - front.at(-1)[1]) > 0) front.push([point.x, point.y]);
    const sweeps = [...Map.groupBy(latest.filter(({ run }) => run.group), ({ run }) => run.group).values()].filter((group) => group.length > 1);
    const whole = runs.filter((run) => run.whole && run.whole[quantity] !== null && run.whole.images_per_s !== null)
      .map((run) => ({ run, x: run.whole.images_per_s / this.unit(run), y: run.whole[quantity] }));
    const tested = new Map(runs.filter((run) => run.whole && run.whole[`teacher_${quantity}`] !== null).map((run) => [run.taught, run.whole]));
    const point = (run, { i, x, y }, more) => ({ run: run.id, x, y, colour: run.colour, tip: () => this.tips(run, i, quantity), ...more });
    const told = latest.map(({ run, x, y }) => `${run.label} ${y.toFixed(1)}${better > 0 ? " %" : ""} at ${number(x)}`).concat(this.wholes(whole.map(({ run }) => run), quantity)).join("; ");
    return {
      key: `${quantity} ${relative}`, larger, x: { title: titles.x }, y: { title: titles.y, log: better < 0 },
      alt: `${better > 0 ? "Top-1 in percent" : "Perplexity"} against ${titles.x}: ${told || "no run has been evaluated yet"}.`,
      rules: teachers.flatMap(({ x, y }) => [{ x }, { y }]),
      lines: [
        ...(front.length > 1 ? [{ at: front, colour: "text", width: 7, opacity: 0.22 }] : []),
        ...sweeps.map((group) => ({ at: group.map(({ x, y }) => [x, y]).sort((a, b) => a[0] - b[0]), colour: "quiet", width: 1.6, dash: [5, 4] })),
        ...paths.map(({ run, at }) => ({ at: at.map(({ x, y }) => [x, y]), colour: run.colour })),
      ],
      points: [
        ...paths.flatMap(({ run, at }) => at.slice(0, -1).map((place) => point(run, place, { size: 3.3, opacity: 0.75 }))),
        ...paths.map(({ run, at }) => point(run, at.at(-1), { size: 6.9, solid: true })),
        ...whole.map(({ run, x, y }) => ({ run: run.id, x, y, colour: run.colour, size: 5.5, shape: "square", hollow: true, solid: true, tip: () => this.wholeTip(run, quantity) })),
        ...teachers.map((teacher) => ({ ...teacher, colour: "text", size: 11, shape: "star", solid: true })),
        ...teachers.filter(({ label }) => tested.has(label)).map(({ label, x }) => ({
          run: label, x, y: tested.get(label)[`teacher_${quantity}`], colour: "text", size: 11, shape: "star", hollow: true,
          tip: () => [["teacher, all test images", label], [titles.task, number(tested.get(label)[`teacher_${quantity}`])], ["images or tokens", number(tested.get(label).images, 9)]],
        })),
        ...published.map(([label, x, y, note]) => ({
          run: "published", x, y, colour: "quiet", size: 7, shape: "diamond", hollow: true, solid: true,
          tip: () => [["published", label], ["top-1, %", number(y)], ["images/s, Titan Xp, batch 32", number(x)], ["note", note]],
        })),
      ],
      labels: [
        ...teachers.map(({ label, x, y }) => ({ x, y, text: label, above: true })),
        ...paths.map(({ run, at }) => ({ ...at[0], text: run.label })),
        ...published.map(([label, x, y]) => ({ x, y, text: label, colour: "quiet", above: true })),
      ],
    };
  }

  steps(runs, quantity, kind) {
    const { titles, larger } = this.view, evaluated = kind === "evals", title = evaluated ? titles.task : titles[quantity];
    const whole = evaluated ? runs.filter((run) => run.whole && run.whole[quantity] !== null && run.whole.step !== null) : [];
    const lines = runs.map((run) => ({ run, rows: run[kind].rows("step", quantity).filter((i) => !evaluated || run.evals.at(i, "phase") > 0) })).filter(({ rows }) => rows.length);
    const at = (run, i) => ({ x: run[kind].at(i, "step"), y: run[kind].at(i, quantity) });
    const tip = (run, i) => () => [
      ["run", run.label], ["step", number(run[kind].at(i, "step"), 9)], [title, number(run[kind].at(i, quantity))],
      ["epoch", number(run[kind].at(i, "epoch"))], ["seconds of training", number(run[kind].at(i, "seconds"))], ...(evaluated ? [[quantity === "top1" ? "test images" : "test tokens", number(run.evals.at(i, "images"), 9)]] : []),
    ].filter(([, value]) => value);
    const told = lines.map(({ run, rows }) => `${run.label} ${number(at(run, rows.at(-1)).y)} at step ${number(at(run, rows.at(-1)).x, 9)}`).concat(this.wholes(whole, quantity)).join("; ");
    return {
      key: quantity, larger, x: { title: "step", zero: true }, y: { title: evaluated ? titles.y : title, log: quantity === "perplexity" },
      alt: `${title} against step: ${told || "nothing yet"}.`,
      lines: lines.map(({ run, rows }) => ({ at: rows.map((i) => Object.values(at(run, i))), colour: run.colour, width: 1.8 })),
      points: [
        ...lines.flatMap(({ run, rows }) => rows.map((i, place) => ({
          run: run.id, ...at(run, i), colour: run.colour, tip: tip(run, i), size: place === rows.length - 1 ? 4.4 : evaluated ? 2.8 : 0,
        }))),
        ...whole.map((run) => ({ run: run.id, x: run.whole.step, y: run.whole[quantity], colour: run.colour, size: 4.5, shape: "square", hollow: true, tip: () => this.wholeTip(run, quantity) })),
      ],
    };
  }
}

export default function ({ data, parentElement }) {
  const root = parentElement.querySelector(".runs"), hub = (window.upvitRuns ??= {});
  root.live ??= new Live(root);
  root.live.picture(JSON.parse(new TextDecoder().decode(data)));
  hub.live = root.live;
  hub.bring?.();
  return () => { for (const plot of Object.values(root.live.plots)) plot.leave(); if (hub.live === root.live) delete hub.live; };
}
