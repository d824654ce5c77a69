"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const live = new Map(); // canvas -> chart
  const draws = []; // every chart of the page can be drawn again when the theme changes

  // --- numbers as text ----------------------------------------------------------------------
  const short = (x) => {
    if (x === null || x === undefined) return "?";
    const size = Math.abs(x);
    return size !== 0 && (size < 1e-3 || size >= 1e5) ? x.toExponential(2) : String(+x.toPrecision(4));
  };
  const percent = (share) => +(100 * share).toPrecision(3) + " %";
  const tail = (text, length) => (text.length > length ? "…" + text.slice(1 - length) : text);

  // --- theme --------------------------------------------------------------------------------
  const store = {
    get: () => { try { return localStorage.getItem("qcompiler-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("qcompiler-theme", value); } catch { /* a file may not */ } },
  };
  const themes = ["auto", "light", "dark"];
  const button = byId("theme");
  function setTheme(name) {
    if (name === "auto") delete root.dataset.theme;
    else root.dataset.theme = name;
    button.textContent = "Theme: " + name;
  }
  let theme = themes.includes(store.get()) ? store.get() : "auto";
  setTheme(theme);
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    store.set(theme);
    setTheme(theme);
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => { setTheme("light"); drawAllCards(); redraw(); });
  addEventListener("afterprint", () => { setTheme(theme); redraw(); });

  function redraw() {
    defaults();
    for (const draw of draws) draw();
    for (const canvas of [...live.keys()]) if (canvas.redraw) canvas.redraw();
  }
  function defaults() {
    Chart.defaults.animation = false;
    Chart.defaults.maintainAspectRatio = false;
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.font.size = 12;
    Chart.defaults.color = colour("dim");
    Chart.defaults.borderColor = colour("line");
    Chart.defaults.plugins.legend.labels.boxWidth = 12;
    Chart.defaults.plugins.legend.labels.boxHeight = 12;
    Chart.defaults.plugins.legend.align = "start";
  }
  function put(canvas, config) {
    live.get(canvas)?.destroy();
    live.set(canvas, new Chart(canvas, config));
  }
  function chart(id, height, config) {
    const canvas = byId("chart-" + id);
    if (!canvas) return;
    if (height) canvas.parentElement.style.height = height + "px";
    const draw = () => put(canvas, config());
    draws.push(draw);
    draw();
  }
  const rows = (count) => 26 * count + 76;

  // --- charts of the whole model ------------------------------------------------------------
  const sideways = (xTitle, stacked, legend = true) => ({
    indexAxis: "y",
    scales: {
      x: { stacked, beginAtZero: true, title: { display: true, text: xTitle }, border: { display: false } },
      y: { stacked, grid: { display: false }, ticks: { autoSkip: false } },
    },
    plugins: { legend: { display: legend } },
  });
  const bar = (label, values, fill, more = {}) => ({
    label, data: values, backgroundColor: fill, borderRadius: 2, maxBarThickness: 18, ...more,
  });

  function drawCoverage(coverage) {
    chart("coverage", rows(coverage.ops.length), () => ({
      type: "bar",
      data: {
        labels: coverage.ops,
        datasets: Object.entries(coverage.series).map(([name, counts]) => bar(name, counts, colour(name))),
      },
      options: sideways("nodes", true),
    }));
  }
  function drawLatency(latency) {
    const height = rows(latency.ops.length) + 10 * latency.ops.length;
    chart("latency", height, () => {
      const options = sideways("milliseconds", false);
      options.plugins.tooltip = { callbacks: { label: (item) => `${item.dataset.label}: ${short(item.raw)} ms` } };
      return {
        type: "bar",
        data: {
          labels: latency.ops,
          datasets: [
            bar("float", latency.float, colour("reference")),
            bar("artifact", latency.artifact, colour("quantized")),
          ],
        },
        options,
      };
    });
  }
  function drawGain(gain) {
    chart("gain", rows(gain.ops.length), () => ({
      type: "bar",
      data: { labels: gain.ops, datasets: [bar("predicted gain, ms", gain.ms, colour("quantized"))] },
      options: sideways("milliseconds", false, false),
    }));
  }
  function drawError(error) {
    const lowest = new Set(
      [...error.sqnr.keys()].sort((a, b) => error.sqnr[a] - error.sqnr[b]).slice(0, 5));
    const points = (label, values, fill) => ({
      type: "line", label, data: values, showLine: false, pointRadius: 2.5,
      pointBackgroundColor: fill, borderColor: fill, backgroundColor: fill,
    });
    chart("error", 300, () => ({
      type: "bar",
      data: {
        labels: error.labels,
        datasets: [
          ...(error.weight ? [points("weights alone", error.weight, colour("carried"))] : []),
          ...(error.activation ? [points("activations alone", error.activation, colour("removed"))] : []),
          bar("SQNR, dB", error.sqnr,
            error.sqnr.map((_, i) => colour(lowest.has(i) ? "float" : "quantized"))),
        ],
      },
      options: {
        scales: {
          x: { ticks: { display: false }, grid: { display: false }, title: { display: true, text: "nodes in graph order" } },
          y: { title: { display: true, text: "SQNR, dB" }, border: { display: false } },
        },
        interaction: { mode: "index", intersect: false },
        plugins: {
          legend: { display: Boolean(error.weight || error.activation) },
          tooltip: { callbacks: { title: (items) => [error.labels[items[0].dataIndex], error.nodes[items[0].dataIndex]] } },
        },
      },
    }));
  }
  function drawSensitivity(sensitivity) {
    chart("sensitivity", rows(sensitivity.values.length), () => {
      const options = sideways("damage to the model's output", false, false);
      options.plugins.tooltip = {
        callbacks: {
          title: (items) => [sensitivity.labels[items[0].dataIndex], sensitivity.nodes[items[0].dataIndex]],
          afterLabel: (item) => (sensitivity.returned[item.dataIndex] ? "returned to float" : ""),
        },
      };
      return {
        type: "bar",
        data: {
          labels: sensitivity.labels.map((text) => tail(text, 44)),
          datasets: [bar("sensitivity", sensitivity.values,
            sensitivity.returned.map((back) => colour(back ? "float" : "quantized")))],
        },
        options,
      };
    });
  }
  function drawTimeline(steps) {
    const phases = [...new Set(steps.map((step) => step.phase))];
    const hues = ["quantized", "carried", "float", "fused", "reference"];
    chart("timeline", rows(phases.length), () => {
      const options = sideways("seconds from the start", false, false);
      options.plugins.tooltip = {
        callbacks: {
          title: (items) => steps[items[0].dataIndex].name,
          label: (item) => {
            const step = steps[item.dataIndex];
            const nodes = step.nodes === null ? "" : `, ${step.nodes} nodes after`;
            return `${short(1000 * step.seconds)} ms${nodes}`;
          },
        },
      };
      return {
        type: "bar",
        data: {
          labels: phases,
          datasets: [{
            data: steps.map((step) => ({ x: [step.start, step.start + step.seconds], y: step.phase })),
            backgroundColor: steps.map((_, i) => colour(hues[i % hues.length])),
            grouped: false, minBarLength: 2, maxBarThickness: 18, borderRadius: 2,
          }],
        },
        options,
      };
    });
  }

  // --- histograms ---------------------------------------------------------------------------
  const chosenRange = {
    id: "chosenRange",
    beforeDatasetsDraw(chart, _, { lo, hi, fill, line }) {
      const { ctx, chartArea: area, scales: { x } } = chart;
      const [from, to] = [x.getPixelForValue(lo), x.getPixelForValue(hi)];
      ctx.save();
      ctx.fillStyle = fill;
      ctx.fillRect(from, area.top, to - from, area.bottom - area.top);
      ctx.strokeStyle = line;
      ctx.lineWidth = 1.5;
      for (const at of [from, to]) {
        ctx.beginPath();
        ctx.moveTo(at, area.top);
        ctx.lineTo(at, area.bottom);
        ctx.stroke();
      }
      ctx.restore();
    },
  };
  function histogram({ lo, hi, histogram: seen }) {
    const step = (seen.hi - seen.lo) / seen.counts.length;
    const middles = seen.counts.map((_, i) => seen.lo + (i + 0.5) * step);
    const [from, to] = [Math.min(seen.lo, lo), Math.max(seen.hi, hi)];
    const margin = 0.02 * (to - from);
    return {
      type: "bar",
      data: {
        datasets: [{
          data: middles.map((x, i) => ({ x, y: Math.log10(1 + seen.counts[i]) })),
          backgroundColor: middles.map((x) => colour(x < lo || x > hi ? "float" : "quantized")),
          barPercentage: 1, categoryPercentage: 1, grouped: false,
        }],
      },
      options: {
        scales: {
          x: {
            type: "linear", offset: false, min: from - margin, max: to + margin, grid: { display: false },
            ticks: { maxTicksLimit: 5, maxRotation: 0, callback: short, includeBounds: false },
          },
          y: { display: false, beginAtZero: true },
        },
        plugins: {
          legend: { display: false },
          chosenRange: { lo, hi, fill: colour("soft"), line: colour("accent") },
          tooltip: {
            displayColors: false,
            callbacks: {
              title: ([item]) => {
                const left = seen.lo + item.dataIndex * step;
                return `${short(left)} to ${short(left + step)}`;
              },
              label: (item) => `${seen.counts[item.dataIndex].toLocaleString("en")} values`,
            },
          },
        },
      },
      plugins: [chosenRange],
    };
  }

  const drawWhenSeen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      drawWhenSeen.unobserve(target);
      target.redraw();
    }
  }, { rootMargin: "300px" });
  function drawAllCards() {
    for (const canvas of document.querySelectorAll(".item canvas")) canvas.redraw();
  }

  const PAGE = 12;
  function gallery(id, items, facts) {
    const box = byId(id + "-gallery");
    if (!box) return;
    const [order, filter, more, count] = ["order", "filter", "more", "count"].map((end) => byId(`${id}-${end}`));
    let shown = PAGE;
    const keys = { order: null, clipped: -1, bulk: 1, bits: 1, narrowest: 1 };
    function fill() {
      for (const canvas of box.querySelectorAll("canvas")) {
        drawWhenSeen.unobserve(canvas);
        live.get(canvas)?.destroy();
        live.delete(canvas);
      }
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const text = (item) => `${item.label} ${item.name ?? item.node}`.toLowerCase();
      const found = items.filter((item) => words.every((word) => text(item).includes(word)));
      const key = order.value;
      const sign = keys[key];
      if (sign) found.sort((a, b) => sign * ((a[key] ?? sign * Infinity) - (b[key] ?? sign * Infinity)) || 0);
      box.replaceChildren(...found.slice(0, shown).map((item) => card(item, facts(item))));
      count.textContent = `${Math.min(shown, found.length)} of ${found.length} shown`;
      more.hidden = found.length <= shown;
    }
    order.addEventListener("change", fill);
    filter.addEventListener("input", fill);
    more.addEventListener("click", () => { shown = shown === PAGE ? 60 : shown + 60; fill(); });
    fill();
  }
  function element(tag, text, name) {
    const made = document.createElement(tag);
    if (text) made.textContent = text;
    if (name) made.className = name;
    return made;
  }
  function card(item, facts) {
    const made = element("div", "", "item");
    const title = element("h3");
    const label = (item.label || item.node).replace(/ \(%.*\)$/, "");
    title.append(element("bdi", label));
    title.title = `${label}\n${item.name ?? item.node}`;
    made.append(title);
    if (item.histogram) {
      const holder = element("div", "", "canvas");
      const canvas = element("canvas");
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Histogram of ${label}, range ${short(item.lo)} to ${short(item.hi)}`);
      canvas.redraw = () => put(canvas, histogram(item));
      holder.append(canvas);
      made.append(holder);
      drawWhenSeen.observe(canvas);
    }
    for (const line of facts.filter(Boolean)) made.append(element("p", line));
    return made;
  }

  // --- all of it ----------------------------------------------------------------------------
  defaults();
  const drawing = {
    coverage: drawCoverage, latency: drawLatency, gain: drawGain, error: drawError,
    sensitivity: drawSensitivity,
  };
  for (const [key, draw] of Object.entries(drawing)) if (data[key]) draw(data[key]);
  if (data.timeline.length) drawTimeline(data.timeline);
  gallery("activations", data.activations, (item) => [
    `%${item.name}: ${short(item.lo)} to ${short(item.hi)}`,
    item.method + (item.clipped === undefined ? "" : `, ${percent(item.clipped)} clipped`),
    item.bulk === undefined ? "" : `99.9 % of the values fill ${percent(item.bulk)} of it`,
  ]);
  gallery("weights", data.weights, (item) => [
    `${item.spec} [${item.shape.join("×")}]: ${short(item.lo)} to ${short(item.hi)}`,
    item.bits === undefined ? "" : `${item.bits} bits used`,
    item.narrowest < 1 ? `narrowest channel ${percent(item.narrowest)} of the widest` : "",
  ]);
  root.dataset.charts = live.size; // says that all of this ran
})();
