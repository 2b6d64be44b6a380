// While a slider is dragged: numbers, veil and the point on the front follow, from formulas and the map's table.
const follow = (window.upvitFollow ??= { data: null, frames: 0, asleep: 0, changed: new Map() });

follow.positions = () => {
  const found = {};
  for (const name of ["residual", "attention", "ffn", "reduction", "heads"]) {
    const input = document.querySelector(`.st-key-knob-${name} input[type="range"]`);
    if (input) found[name] = Number(input.value);
  }
  return found;
};

follow.put = (name, value, note) => {
  const card = document.querySelector(`[data-follow="${name}"]`);
  if (!card) return;
  const before = follow.changed.get(card)?.before ?? card.innerHTML;
  card.querySelectorAll(".mark, .source").forEach((node) => node.remove()); // labels of the previous plan
  const [number, words] = [card.querySelector(".value"), card.querySelector(".note")];
  if (value !== null && number.textContent !== value) number.textContent = value;
  if (words.textContent !== note) words.textContent = note;
  follow.changed.set(card, { before, written: card.innerHTML });
};

// Show what the page wrote in the cards again, unless it has written something new since.
follow.restore = () => {
  for (const [card, { before, written }] of follow.changed) if (card.innerHTML === written) card.innerHTML = before;
  follow.changed.clear();
};

follow.veil = (widths, heads) => {
  const chart = document.querySelector(".st-key-strips .js-plotly-plot"), layout = chart?._fullLayout;
  if (!layout || !follow.data.veil) return;
  if (!follow.cover || follow.cover.chart !== chart) {
    follow.wake();
    const layer = document.createElement("div");
    layer.className = "follow-veil";
    chart.append(layer);
    const old = follow.data.veil.flatMap((_, number) => {
      const plot = chart.querySelector(`.subplot.x${number ? number + 1 : ""}y${number ? number + 1 : ""}`);
      return plot ? [...[...plot.querySelectorAll(".hm")].slice(1), ...plot.querySelectorAll(".scatterlayer .trace")] : [];
    });
    for (const node of old) node.style.visibility = "hidden";
    follow.cover = { chart, layer, old, parts: [] };
  }
  let number = 0;
  follow.data.veil.forEach(({ component, width, colour }, place) => {
    const suffix = place ? place + 1 : "", x = layout[`xaxis${suffix}`], y = layout[`yaxis${suffix}`];
    const groups = component === "attention" ? heads : 1, size = width / groups;
    const kept = widths[follow.data.model.components.indexOf(component)] / groups;
    const pixel = x._length / width;
    for (let group = 0; group < groups; group++) {
      const part = (follow.cover.parts[number++] ??= follow.cover.layer.appendChild(document.createElement("i")));
      part.style.cssText = `transform:translate(${x._offset + (group * size + kept) * pixel}px,${y._offset}px);` +
        `width:${Math.max((size - kept) * pixel, 0)}px;height:${y._length}px;border-left-color:${colour}`;
    }
  });
  for (const part of follow.cover.parts.slice(number)) part.style.cssText = "display:none";
};

follow.point = (x, y) => {
  const chart = document.querySelector(".st-key-front .js-plotly-plot"), layout = chart?._fullLayout;
  if (!layout) return;
  if (follow.dot?.parentNode !== chart) {
    follow.dot?.remove();
    follow.dot = chart.appendChild(document.createElement("div"));
    follow.dot.className = "follow-dot";
  }
  const { xaxis, yaxis } = layout, across = xaxis._offset + xaxis.d2p(x);
  const high = y === null ? yaxis._offset + yaxis._length : yaxis._offset + yaxis.d2p(y);
  follow.dot.style.cssText = `transform:translate(${across}px,${yaxis._offset}px);height:${yaxis._length}px;` +
    `--at:${Math.min(Math.max(high - yaxis._offset, 0), yaxis._length)}px;--seen:${y === null ? 0 : 1}`;
};

follow.wake = () => {
  if (follow.cover) {
    follow.cover.layer.remove();
    for (const node of follow.cover.old) node.style.visibility = "";
  }
  follow.cover = null;
};

follow.show = (at) => {
  if (JSON.stringify(at) === follow.home) return follow.rest();
  const { model, heads, table, front, task } = follow.data;
  const now = heads.length ? heads[at.heads ?? heads.length - 1] : 0;
  const widths = widthsAt(model, { reduction: at.residual, ...at }, now);
  const [params, macs] = ["params", "macs"].map((name) => countAt(model.counts[name], widths));
  const whole = ["params", "macs"].map((name) => countAt(model.counts[name], model.full));
  const than = (now, of, word) => now === of ? "as the original" : `${times(of / now)} ${word} than ${short(of)}`;
  follow.put("params", short(params), than(params, whole[0], "smaller"));
  follow.put("macs", short(macs), than(macs, whole[1], "fewer"));
  follow.put("speed", "—", "measured when you let go");
  const known = table && table.heads === now;
  const value = known ? estimateAt(table, table.values, at) : null;
  follow.put("quality", value === null ? "—" : `${value.toFixed(1)}${task.sign}`,
    value === null ? "measured when you let go" : `estimated from ${table.cuts} measured cuts`);
  if (now === follow.data.shown) follow.veil(widths, now || 1);
  if (front) follow.point(front === "macs" ? macs : params, front && known ? value : null);
};

follow.loop = () => {
  if (!follow.data) return;
  const at = follow.positions(), text = JSON.stringify(at);
  if (text !== follow.last) {
    follow.last = text;
    follow.asleep = 0;
    follow.frames += 1;
    follow.moving = true;
    follow.show(at);
  } else follow.asleep += 1;
  follow.running = follow.down || follow.asleep < 20 ? requestAnimationFrame(follow.loop) : 0;
};

follow.begin = (event) => {
  if (!event.target.closest?.('[class*="st-key-knob-"]') || !follow.data) return;
  follow.down = event.type === "pointerdown";
  follow.last ??= JSON.stringify(follow.positions());
  follow.asleep = 0;
  if (!follow.running) follow.running = requestAnimationFrame(follow.loop);
};

follow.rest = () => {
  follow.restore();
  follow.wake();
  follow.dot?.remove();
  follow.dot = null;
};

export default function ({ data }) {
  follow.data = data;
  follow.home = follow.last = JSON.stringify(follow.positions());
  follow.moving = false;
  follow.rest();
  if (follow.listening) return;
  follow.listening = true;
  for (const name of ["pointerdown", "keydown"]) document.addEventListener(name, (event) => follow.begin(event), true);
  document.addEventListener("pointerup", () => { follow.down = false; }, true);
}
