// One block to scale: heights are channels. The original is a dashed outline, the thinner model filled inside it.
const drawBlock = (svg, model, heads) => {
  const SVG = "http://www.w3.org/2000/svg";
  const add = (name, attributes, parent = svg) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return parent.appendChild(node);
  };
  const label = (x, y, cls, anchor = "middle") => add("text", { x, y, class: cls, "text-anchor": anchor });
  const first = (component) => model.components.indexOf(component);
  const full = (component) => model.full[first(component)];
  const unit = 150 / Math.max(full("residual"), full("attention"), full("ffn"));
  svg.replaceChildren();
  svg.setAttribute("viewBox", "26 6 520 318");
  add("rect", { x: 88, y: 14, width: 396, height: 302, rx: 8, class: "outer" });
  const stack = label(474, 308, "small", "end");
  const stream = 268, high = 128;
  const wires = add("path", { class: "wire" });
  const ghost = { band: add("rect", { class: "ghost residual" }), heads: add("rect", { class: "ghost attention" }),
    ffn: add("path", { class: "ghost ffn" }) };
  const band = add("rect", { class: "residual" }), stripes = [], hexagon = add("path", { class: "ffn" });
  const group = add("g", {});
  for (let head = 0; head < heads; head++) stripes.push(add("rect", { class: "attention" }, group));
  const names = { residual: label(286, 310, "name"), attention: label(178, 34, "name"), ffn: label(368, 34, "name") };
  const box = (node, x, y, width, height) => {
    for (const [key, value] of Object.entries({ x, y, width, height: Math.max(height, 0.6) })) node.setAttribute(key, value);
  };
  const hexagonAt = (node, ends, middle) => node.setAttribute("d",
    `M312 ${high - ends / 2} L346 ${high - middle / 2} H390 L424 ${high - ends / 2} V${high + ends / 2} ` +
    `L390 ${high + middle / 2} H346 L312 ${high + ends / 2} Z`);
  const D = unit * full("residual"), A = unit * full("attention"), H = unit * full("ffn");
  box(ghost.band, 36, stream - D / 2, 500, D);
  box(ghost.heads, 132, high - A / 2, 92, A);
  hexagonAt(ghost.ffn, D, H);
  return (widths, now) => {
    const [d, a, h] = ["residual", "attention", "ffn"].map((component) => unit * widths[first(component)]);
    box(band, 36, stream - d / 2, 500, d);
    const step = a / now, gap = Math.min(2, step / 4);
    stripes.forEach((stripe, head) => {
      stripe.style.display = head < now ? "" : "none";
      if (head < now) box(stripe, 132, high - a / 2 + head * step, 92, step - gap);
    });
    hexagonAt(hexagon, d, h);
    const top = stream - d / 2;
    wires.setAttribute("d", `M106 ${top} V${high} H130 M226 ${high} H250 V${top} M288 ${top} V${high} H310 M426 ${high} H450 V${top}`);
    names.residual.textContent = `Residual ${widths[first("residual")]} of ${full("residual")}`;
    names.attention.textContent = `Attention ${now} × ${widths[first("attention")] / now}`;
    names.ffn.textContent = `FFN ${widths[first("ffn")]} of ${full("ffn")}`;
    stack.textContent = `one block, × ${model.depth}`;
  };
};
