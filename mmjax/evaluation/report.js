// The values at the step nearest to the pointer, in each chart. Without it the page says all but these.
const brief = (value) => (value && Math.abs(value) < 1e-4 ? value.toExponential(2) : Number(value.toPrecision(4)));

for (const plot of document.querySelectorAll(".plot")) {
  const { end, unit, series } = JSON.parse(plot.dataset.readOut);
  const line = plot.appendChild(document.createElement("i"));
  const text = plot.appendChild(document.createElement("span"));
  line.className = "pointer";
  text.className = "read-out";
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * end;
    const nearest = series.map(([label, points]) => {
      const [step, value] = points.reduce((a, b) => (Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
      return { step, label, value: value === null ? "–" : brief(value) + unit };
    });
    const share = Math.min(nearest[0].step / end, 1);
    line.style.left = text.style.left = `${100 * share}%`;
    text.style.transform = `translateX(${-100 * share}%)`;
    text.textContent = [`step ${nearest[0].step}`, ...nearest.map((n) => `${n.label} ${n.value}`)].join(" · ");
    plot.classList.add("pointed");
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => plot.classList.remove("pointed"));
}
