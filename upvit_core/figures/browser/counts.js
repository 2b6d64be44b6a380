// Parameters and MACs at a slider position, from the polynomials and tables of `live_counts`.
const widthsAt = (model, percents, heads) => {
  const table = model.widths[heads] ?? Object.values(model.widths)[0];
  return model.components.map((component, group) => table.rows[table.row[group]][percents[component] ?? 0]);
};

const countAt = ({ base, slopes, crosses }, widths) => {
  let total = base;
  for (let group = 0; group < widths.length; group++) total += slopes[group] * (widths[group] - 1);
  for (const [a, b, cross] of crosses) total += cross * (widths[a] - 1) * (widths[b] - 1);
  return total;
};

// The map's estimate at percents between its grid points, linear along each axis; the last axis runs fastest.
const estimateAt = ({ percents, axes }, values, at) => {
  let corners = [[0, 1]];
  for (const axis of axes) {
    const own = percents[axis], low = Math.max(own.findLastIndex((percent) => percent <= at[axis]), 0);
    const high = Math.min(low + 1, own.length - 1);
    const part = high > low ? (at[axis] - own[low]) / (own[high] - own[low]) : 0;
    corners = corners.flatMap(([place, weight]) => [
      [place * own.length + low, weight * (1 - part)], [place * own.length + high, weight * part]]);
  }
  return corners.reduce((sum, [place, weight]) => sum + (weight ? weight * values[place] : 0), 0);
};

const short = (number, digits = 2) => {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(number) >= size) return `${(number / size).toFixed(digits)} ${unit}`;
  return String(Math.round(number));
};

const times = (factor) => `${factor.toFixed(factor < 10 ? 2 : 1)}×`;

const signed = (change, digits = 1) =>
  `${Number(change.toFixed(digits)) < 0 ? "−" : "+"}${Math.abs(change).toFixed(digits)}`;

const thousands = (number) => Math.round(number).toLocaleString("en-US");
