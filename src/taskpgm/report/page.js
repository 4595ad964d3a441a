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
      "width": div.clientWidth, "height": div.clientHeight, "font.color": of("--text"), "font.size": size, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "hoverlabel.bgcolor": of("--box"), "hoverlabel.font.color": of("--text"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      found[axis + ".gridcolor"] = found[axis + ".zerolinecolor"] = of("--line");
      const full = div.fullLabels[axis];
      const every = full && axis[0] === "x" && layout[axis].type !== "log" ? Math.ceil(full.length * 1.15 * size / (0.6 * div.clientWidth)) : 1;
      if (full) found[axis + ".ticktext"] = fitted(div, full).map((name, k) => k % every ? "" : name);
    }
    return found;
  };
  const fitted = (div, names) => div.clientWidth < 560 ? names.map(narrow) : names;
  const narrow = (html) => {
    const name = raw(html);
    const cut = name.length > 13 ? "…" + name.slice(-12) : name;
    return cut.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  };
  const put = (layout, keys, value) => { const last = keys.pop(); keys.reduce((at, key) => (at[key] ??= {}), layout)[last] = value; };
  const drawn = () => [...document.querySelectorAll(".plot")].filter((div) => div.layout);
  // Figures whose colours or size are no longer the page's, until they are seen again or printed.
  const stale = new Set();
  let near = null;
  const relook = (div) => {
    if (!stale.delete(div)) return;
    Plotly.relayout(div, look(div, div.layout));
    div.fullNames.forEach((names, k) => names && Plotly.restyle(div, { text: [fitted(div, names)] }, [k]));
  };
  const age = () => drawn().forEach((div) => { stale.add(div); near.unobserve(div); near.observe(div); });
  const theme = (name) => { root.dataset.theme = name; if (near) age(); };

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
  // The data of a figure, names of columns first; of a heat map those of the one that is shown.
  const dataOf = (div, picture) => {
    const columns = Object.entries(picture.table);
    if (columns.length) return [columns.map(([name]) => name), ...columns[0][1].map((_, k) => columns.map(([, values]) => values[k]))];
    const shown = div._fullData.find((trace) => trace.type === "heatmap" && trace.visible === true);
    return [[raw(shown.name), ...picture.names[1]], ...picture.names[0].map((name, k) => [name, ...Array.from(shown.z[k])])];
  };
  const csv = (rows) => rows.map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";

  // The same for those who do not see the figure, or want its numbers: made when it is unfolded.
  const said = (value) => typeof value === "number" ? String(Number(value.toPrecision(4))) : value === null || value === undefined ? "" : String(value);
  const tabled = (all, title) => {
    const table = make("table"), part = all.slice(0, 201).map((row) => row.slice(0, 41));
    const cut = part.length < all.length || part[0].length < all[0].length;
    const words = cut ? `${title}; the first ${part.length - 1} of ${all.length - 1} rows, all in the CSV` : title;
    table.append(make("caption", { className: "unseen", textContent: words }));
    part.forEach((row, k) => {
      const line = (k ? table.tBodies[0] || table.createTBody() : table.createTHead()).insertRow();
      row.forEach((value, j) => line.append(make(k && j ? "td" : "th", { scope: k && j ? undefined : k ? "row" : "col", textContent: said(value) })));
    });
    const scroll = make("div", { className: "scroll", tabIndex: 0 });
    scroll.append(...(cut ? [make("p", { textContent: words })] : []), table);
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", `Data: ${title}`);
    return scroll;
  };

  let chosen = null;
  const choose = (task) => {
    chosen = task;
    for (const select of document.querySelectorAll("select.task")) select.value = task;
    for (const panel of document.querySelectorAll(".panel")) panel.hidden = panel.dataset.task !== task;
    drawn().forEach(follow);
  };
  const follow = (div) => {
    const k = div.choose && chosen !== null ? div.data.findIndex((trace) => raw(trace.name || "") === chosen) : -1;
    if (k >= 0) div.choose(k);
  };
  for (const select of document.querySelectorAll("select.task")) select.addEventListener("change", () => choose(select.value));

  root.dataset.theme = wide.matches ? "dark" : "light";
  document.getElementById("theme").addEventListener("click", () => theme(root.dataset.theme === "dark" ? "light" : "dark"));
  wide.addEventListener("change", () => theme(wide.matches ? "dark" : "light"));
  const trouble = (words) => Object.assign(document.getElementById("trouble"), { hidden: false, textContent: words });
  if (!window.DecompressionStream) { trouble("This browser is too old for the figures; the sentences and tables stand."); return; }
  document.head.append(make("script", { textContent: await unpack("plotly-packed") }));

  // Data of figures that are unpacked, and what is left to draw.
  const unpacked = new Map(), waiting = new Set(document.querySelectorAll(".plot"));
  const fetched = async (div) => { if (!unpacked.has(div)) unpacked.set(div, await unpack(div.id + "-packed")); };
  const draw = (div) => {
    if (!waiting.delete(div)) return;
    const picture = JSON.parse(unpacked.get(div)), { data, layout } = picture.figure, figure = div.closest("figure");
    unpacked.delete(div);
    controls(div, figure.querySelector(".controls"), layout, picture);
    div.fullLabels = {};
    for (const key of Object.keys(layout)) if (layout[key] && layout[key].ticktext) div.fullLabels[key] = layout[key].ticktext;
    div.fullNames = data.map((trace) => (trace.mode || "").includes("text") ? trace.text : null);
    data.forEach((trace, k) => { if (div.fullNames[k]) trace.text = fitted(div, div.fullNames[k]); });
    delete layout.template.layout.colorway;
    for (const [path, value] of Object.entries(look(div, layout))) put(layout, path.split("."), value);
    Plotly.newPlot(div, data, layout, { displayModeBar: false });
    for (const part of [...div.children, ...document.querySelectorAll("#js-plotly-tester")]) part.setAttribute("aria-hidden", "true");
    const save = figure.querySelector(".csv"), numbers = figure.querySelector("details");
    save.addEventListener("click", () => {
      save.href = URL.createObjectURL(new Blob(["\ufeff", csv(dataOf(div, picture))], { type: "text/csv" }));
    });
    numbers.addEventListener("toggle", () => {
      numbers.querySelector(".scroll")?.remove();
      if (numbers.open) numbers.append(tabled(dataOf(div, picture), picture.title));
    });
    follow(div);
    if (div.id === "graph") {
      div.on("plotly_click", ({ points }) => {
        const at = points[0].customdata;
        if (Number.isInteger(at)) choose(raw(points[0].hovertext.split("<br>")[0]));
      });
    }
    if (!waiting.size) root.dataset.drawn = "all";
  };

  // What is on the screen first; then what the reader scrolls to, the rest while nothing happens, all before printing.
  const idle = window.requestIdleCallback || ((next) => setTimeout(next, 20));
  near = new IntersectionObserver(async (entries) => {
    const seen = entries.filter((e) => e.isIntersecting).map((e) => e.target);
    for (const div of seen) {
      near.unobserve(div);
      if (waiting.has(div)) { await fetched(div); draw(div); } else relook(div);
    }
    for (const div of waiting) await fetched(div);
    idle(rest);
  }, { rootMargin: "300px" });
  const rest = () => {
    const next = [...waiting].find((div) => unpacked.has(div));
    if (next) { draw(next); idle(rest); }
  };
  waiting.forEach((div) => near.observe(div));
  let before, pending;
  addEventListener("beforeprint", () => {
    [...waiting].filter((div) => unpacked.has(div)).forEach(draw);
    if (waiting.size) trouble(`${waiting.size} figures were not unpacked yet; print again.`);
    else document.getElementById("trouble").hidden = true;
    before = root.dataset.theme;
    root.dataset.printed = "";
    theme("light");
    [...stale].forEach(relook);
  });
  addEventListener("afterprint", () => { delete root.dataset.printed; theme(before); });
  addEventListener("resize", () => { clearTimeout(pending); pending = setTimeout(age, 200); });
})();
