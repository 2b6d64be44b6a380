// The first screen: one slider thins the model; numbers, drawing and captions follow the pointer without the server.
export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".tour");
  const find = (name) => root.querySelector(`[data-at="${name}"]`);
  const { model, tour, heads } = data;
  const slider = find("slider"), key = JSON.stringify([tour?.model_digest, model.full]);
  if (root.made !== key) {
    root.made = key;
    root.draw = drawBlock(find("drawing"), model, heads);
    root.way = data.way;
    slider.value = data.percent;
    root.hidden = false;
  }
  root.dataset.theme = data.theme;
  const full = model.full, counts = model.counts.params, original = countAt(counts, full);
  const put = (name, text) => { const node = find(name); if (node && node.textContent !== text) node.textContent = text; };
  const speed = (percent) => {
    const low = Math.floor(percent / 5) * 5, high = Math.min(low + 5, 95), part = (percent - low) / 5;
    return tour.speed.ratio[low] * (1 - part) + tour.speed.ratio[high] * part;
  };

  const show = () => {
    const percent = Number(slider.value);
    const even = { residual: percent, attention: percent, ffn: percent, reduction: percent };
    const widths = widthsAt(model, even, heads), params = countAt(counts, widths);
    root.draw(widths, heads);
    slider.style.setProperty("--share", `${(100 * percent) / slider.max}%`);
    slider.setAttribute("aria-valuetext", `${percent} % removed`);
    put("percent", `${percent} %`);
    put("params", short(params, params < 1e5 ? 1 : 0));
    put("params-note", `${times(original / params)} smaller`);
    put("params-was", `original ${short(original, 0)}`);
    if (!tour) return;
    const ratio = speed(percent);
    put("speed", thousands(tour.speed.images_per_s * ratio));
    put("speed-note", `${times(ratio)} as fast`);
    put("speed-was", `original ${thousands(tour.speed.images_per_s)}`);
    const way = tour.ways[root.way], was = tour.ways.paper.top1[0];
    put("top1", `${way.top1[percent].toFixed(1)} %`);
    put("top1-note", `${signed(way.top1[percent] - was)} points`);
    put("top1-was", `original ${was.toFixed(1)} %`);
    find("top1-note").classList.toggle("worse", was - way.top1[percent] >= 1);
    for (const button of root.querySelectorAll("[data-way]")) {
      const own = button.dataset.way;
      button.setAttribute("aria-checked", String(own === root.way));
      button.tabIndex = own === root.way ? 0 : -1;
      button.querySelector("b").textContent = `${tour.ways[own].top1[percent].toFixed(1)} %`;
    }
    way.answers[percent].forEach(([label, sure], number) => {
      const [before, surely] = tour.ways.paper.answers[0][number];
      put(`answer-${number}`, `${tour.classes[label]} ${Math.round(sure)}\u00a0%`);
      put(`was-${number}`, `was ${tour.classes[before]} ${Math.round(surely)}\u00a0%`);
      find(`answer-${number}`).classList.toggle("wrong", label !== tour.labels[number]);
      find(`answer-${number}`).title = `It is: ${tour.classes[tour.labels[number]]}`;
    });
  };
  const choose = (way) => {
    root.way = way;
    show();
    setStateValue("way", way);
  };
  slider.oninput = show;
  slider.onchange = () => setStateValue("percent", Number(slider.value));
  for (const button of root.querySelectorAll("[data-way]")) {
    button.onclick = () => choose(button.dataset.way);
    button.onkeydown = (event) => {
      if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
      const other = root.querySelector('[data-way][aria-checked="false"]');
      other.focus();
      choose(other.dataset.way);
    };
  }
  show();
}
