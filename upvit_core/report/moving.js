// Numbers at the sliders of a report, whose positions count along `data.percents` and `data.heads`.
const root = document.querySelector(".moving"), inputs = [...root.querySelectorAll("input")];
const put = (name, text) => { root.querySelector(`[data-at="${name}"]`).textContent = text; };
const axes = Object.keys(data.percents);
const show = () => {
  const place = Object.fromEntries(inputs.map((input) => [input.name, Number(input.value)]));
  const at = Object.fromEntries(axes.map((axis) => [axis, data.percents[axis][place[axis]]]));
  const heads = data.heads[place.heads ?? 0], widths = widthsAt(data.model, { reduction: at.residual, ...at }, heads);
  for (const name of ["params", "macs"]) {
    const now = countAt(data.model.counts[name], widths), whole = countAt(data.model.counts[name], data.model.full);
    put(name, thousands(now));
    put(`${name}-note`, `${times(whole / now)} fewer than ${thousands(whole)}`);
  }
  const table = data.tables[heads];
  const [value, low, high] = ["values", "low", "high"].map((name) =>
    table && estimateAt({ percents: data.percents, axes }, table[name], at).toFixed(data.task.digits));
  put("value", table ? value + data.task.sign : "not known yet");
  put("value-note", table ? `${data.cuts}; 80 % band ${low} – ${high}` : "a map of measured cuts would tell");
  for (const input of inputs) {
    const group = data.model.components.indexOf(input.name), words = group < 0 ? `${heads}` :
      `${at[input.name]} % · ${widths[group]} of ${data.model.full[group]} stay`;
    put(input.name, words);
    input.setAttribute("aria-valuetext", words);
  }
};
root.addEventListener("input", show);
show();
