// Curves with uPlot in the page's colours: follows the theme and the width of its place, and tells when somebody zooms.
// Colours come from the stylesheet, words from the caller. Needs vendor/uplot as a script before it.

const formats = {
  loss: (value) => value.toFixed(4),
  percent: (value) => `${(100 * value).toFixed(1)}%`,
  share: (value) => `${Number((100 * value).toFixed(1))}%`,
  rate: (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString()),
  short: (value) => {
    for (const [limit, unit] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(value) >= limit) return Number((value / limit).toPrecision(3)) + unit;
    return Number(value.toPrecision(3)).toString();
  },
  bytes: (value) => {
    let unit = 0;
    while (Math.abs(value) >= 999.5 && unit < 5) { value /= 1000; unit += 1; }
    return `${Number(value.toPrecision(3))} ${["B", "kB", "MB", "GB", "TB", "PB"][unit]}`;
  },
  plain: (value) => value.toLocaleString(),
};
export const format = (name, value) => (value == null ? "–" : formats[name](value));

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const WHOLE = [1, 2, 5].flatMap((each) => [...Array(9).keys()].map((power) => each * 10 ** power)).sort((one, other) => one - other);  // steps, epochs

// host: an element; the chart is put at its end. series: [{label, colour: "--training", points: true}].
// xLabel: what x is; height in px; onZoom(min, max), called with nulls for the whole range.
export function lineChart(host, { series, xLabel, valueFormat, height = 150, onZoom = null, sync = null }) {
  let plot = null, data = [[], ...series.map(() => [])];
  const tell = (value) => format(valueFormat, value);

  function options() {
    const line = colour("--line"), text = colour("--muted");
    const axis = { stroke: text, font: "11px Inter, system-ui", grid: { stroke: line, width: 1 }, ticks: { show: false } };
    return {
      width: Math.max(200, host.clientWidth), height,
      cursor: { drag: { x: onZoom !== null, y: false, setScale: false }, ...(sync ? { sync: { key: sync, setSeries: false } } : {}) },
      scales: { x: { time: false }, y: { range: (_, low, high) => spread(low, high) } },
      legend: { live: true, markers: { width: 0, fill: (_, index) => (index ? colour(series[index - 1].colour) : null) } },
      axes: [
        { ...axis, size: 26, space: 44, incrs: WHOLE, values: (_, ticks) => ticks.map((tick) => (Number.isInteger(tick) ? tick.toLocaleString() : "")) },
        { ...axis, size: (_, told) => 14 + 6.5 * Math.max(2, ...(told ?? []).map((each) => each.length)), space: 32, values: (_, ticks) => ticks.map(valueFormat === "loss" ? (tick) => Number(tick.toFixed(4)).toString() : valueFormat === "percent" ? formats.share : tell) },
      ],
      series: [
        { label: xLabel, value: (_, value) => (value == null ? "–" : value.toLocaleString()) },
        ...series.map((each) => ({
          label: each.label, stroke: colour(each.colour), width: 1.8, spanGaps: true, dash: each.dash,
          points: { show: each.points ?? false, size: 7, fill: colour(each.colour) },
          value: (_, value) => (value == null ? "–" : tell(value)),
        })),
      ],
      hooks: {
        setSelect: [(self) => {
          if (!onZoom || self.select.width < 4) return;
          onZoom(self.posToVal(self.select.left, "x"), self.posToVal(self.select.left + self.select.width, "x"));
          self.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
        }],
        ready: [(self) => { if (onZoom) self.over.addEventListener("dblclick", () => onZoom(null, null)); }],
      },
    };
  }

  function spread(low, high) {
    if (low == null) return [0, 1];
    const room = (high - low || Math.abs(high) || 1) * 0.08;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  function build() {
    plot?.destroy();
    host.classList.toggle("single", series.length === 1);
    plot = new uPlot(options(), data, host);
  }

  new ResizeObserver(() => plot && host.clientWidth && plot.setSize({ width: host.clientWidth, height })).observe(host);
  document.addEventListener("theme", build);
  let isDrawing = false;
  return {
    set(fresh) {
      data = fresh;
      if (!plot) { build(); return; }
      if (isDrawing) return;
      isDrawing = true;  // many events, one drawing a frame
      requestAnimationFrame(() => { isDrawing = false; plot.setData(data); });
    },
  };
}
