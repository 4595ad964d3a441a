"use strict";
(async () => {
  const root = document.documentElement;
  const wide = matchMedia("(prefers-color-scheme: dark)");
  const make = (name, more = {}) => Object.assign(document.createElement(name), more);

  const unpack = async (id) => {
    const packed = atob(document.getElementById(id).textContent), bytes = new Uint8Array(packed.length);
    for (let k = 0; k < packed.length; k++) bytes[k] = packed.charCodeAt(k);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  };
  const raw = (html) => html.replace(/&(amp|lt|gt|quot|#x27);/g, (_, n) => ({ amp: "&", lt: "<", gt: ">", quot: '"', "#x27": "'" })[n]);

  // Colours and sizes of figures follow the page's.
  const look = (div, layout) => {
    const style = getComputedStyle(root), of = (name) => style.getPropertyValue(name).trim();
    const size = 0.75 * parseFloat(style.fontSize), found = {
      "font.color": of("--text"), "font.size": size, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": of("--box"), "hoverlabel.font.color": of("--text"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      found[axis + ".gridcolor"] = found[axis + ".zerolinecolor"] = of("--line");
      const full = div.fullLabels[axis];
      if (full) found[axis + ".ticktext"] = div.clientWidth < 560 ? full.map(narrow) : full;
    }
    return found;
  };
  const narrow = (html) => {
    const name = raw(html);
    const cut = name.length > 13 ? "…" + name.slice(-12) : name;
    return cut.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  };
  const put = (layout, keys, value) => { const last = keys.pop(); keys.reduce((at, key) => (at[key] ??= {}), layout)[last] = value; };
  const drawn = () => [...document.querySelectorAll(".plot")].filter((div) => div.layout);
  const relook = () => drawn().forEach((div) => Plotly.relayout(div, look(div, div.layout)));
  const theme = (name) => { root.dataset.theme = name; relook(); };

  // What Plotly draws as buttons and sliders, as controls that a keyboard and a screen reader know.
  const controls = (div, place, layout, picture) => {
    for (const menu of layout.updatemenus || []) {
      if (picture.follows) { div.choose = (k) => Plotly.update(div, ...menu.buttons[k].args); continue; }
      const group = make("fieldset");
      group.append(make("legend", { textContent: "Show" }));
      menu.buttons.forEach((button, k) => {
        const input = make("input", { type: "radio", name: div.id + "-switch", checked: k === (menu.active || 0), className: "control" });
        input.addEventListener("change", () => Plotly.update(div, ...button.args));
        const label = make("label");
        label.append(input, " " + raw(button.label));
        group.append(label);
      });
      place.append(group);
    }
    for (const slider of layout.sliders || []) {
      const label = make("label"), shown = make("output");
      const input = make("input", { type: "range", min: 0, max: slider.steps.length - 1, step: 1, value: slider.active || 0 });
      const say = () => {
        const step = slider.steps[+input.value];
        shown.textContent = step.label;
        input.setAttribute("aria-valuetext", step.label);
        return step;
      };
      input.addEventListener("input", () => Plotly[say().method](div, ...slider.steps[+input.value].args));
      label.append(raw(slider.currentvalue.prefix), input, " ", shown);
      say();
      place.append(label);
    }
    delete layout.updatemenus;
    delete layout.sliders;
  };

  const quoted = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? "'" + text : text;  // a spreadsheet would run it
    return /[",\n\r]/.test(safe) ? '"' + safe.replace(/"/g, '""') + '"' : safe;
  };
  const csv = (div, picture) => {
    const columns = Object.entries(picture.table);
    let rows;
    if (columns.length) {
      rows = [columns.map(([name]) => name), ...columns[0][1].map((_, k) => columns.map(([, values]) => values[k]))];
    } else {
      const shown = div._fullData.find((trace) => trace.type === "heatmap" && trace.visible === true);
      rows = [[raw(shown.name), ...picture.names[1]], ...picture.names[0].map((name, k) => [name, ...Array.from(shown.z[k])])];
    }
    return rows.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
  };

  const choose = (task) => {
    for (const select of document.querySelectorAll("select.task")) select.value = task;
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = panel.dataset.task !== task;
    for (const div of drawn().filter((one) => one.choose)) {
      const k = div.data.findIndex((trace) => raw(trace.name || "") === task);
      if (k >= 0) div.choose(k);
    }
  };
  for (const select of document.querySelectorAll("select.task")) select.addEventListener("change", () => choose(select.value));

  root.dataset.theme = wide.matches ? "dark" : "light";
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
  wide.addEventListener("change", () => theme(wide.matches ? "dark" : "light"));
  let before;
  addEventListener("beforeprint", () => { before = root.dataset.theme; theme("light"); });
  addEventListener("afterprint", () => theme(before));

  const trouble = (words) => Object.assign(document.getElementById("trouble"), { hidden: false, textContent: words });
  if (!window.DecompressionStream) { trouble("This browser is too old for the figures; the sentences and tables stand."); return; }
  document.head.append(make("script", { textContent: await unpack("plotly-packed") }));
  const pictures = JSON.parse(await unpack("data-packed"));

  const draw = async (div) => {
    const picture = pictures[div.id], { data, layout } = picture.figure, figure = div.closest("figure");
    controls(div, figure.querySelector(".controls"), layout, picture);
    div.fullLabels = {};
    for (const key of Object.keys(layout)) if (layout[key] && layout[key].ticktext) div.fullLabels[key] = layout[key].ticktext;
    delete layout.template.layout.colorway;
    for (const [path, value] of Object.entries(look(div, layout))) put(layout, path.split("."), value);
    await Plotly.newPlot(div, data, layout, { displayModeBar: false, responsive: true });
    const svg = div.querySelector("svg.main-svg");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", picture.title);
    const save = figure.querySelector(".csv");
    save.addEventListener("click", () => {
      save.href = URL.createObjectURL(new Blob(["\ufeff", csv(div, picture)], { type: "text/csv" }));
    });
    if (div.id === "graph") {
      div.on("plotly_click", ({ points }) => {
        const at = points[0].customdata;
        if (Number.isInteger(at)) choose(raw(points[0].hovertext.split("<br>")[0]));
      });
    }
  };
  // What is on the screen first; the rest as it comes near, or when the page is printed.
  const waiting = new Set(document.querySelectorAll(".plot"));
  const start = (div) => waiting.delete(div) && draw(div);
  const near = new IntersectionObserver((entries) => entries.filter((e) => e.isIntersecting).forEach((e) => start(e.target)), { rootMargin: "1500px" });
  waiting.forEach((div) => near.observe(div));
  const rest = async () => { for (const div of [...waiting]) { await start(div); await new Promise((r) => setTimeout(r)); } root.dataset.drawn = "all"; };
  addEventListener("load", rest);
  if (document.readyState === "complete") rest();
  let pending;
  addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(relook, 200); });
})();
