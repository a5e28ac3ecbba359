"use strict";
// Draws figures with plotly.js and puts labelled controls above them in place of plotly's menus.
const onnxplain = (() => {
  const { looks, scales } = read("looks");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const requests = new Map(); // what each holder shows, with its arrays
  const chosen = {}; // what was chosen in each control; the same for all plots of a page
  const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
  const PAPER = 680; // pixels that fit beside each other
  let printing = false;
  let arrays = new Map(); // of the figure that is being drawn

  function read(id) {
    return JSON.parse(document.getElementById(id).textContent);
  }

  function look() {
    const asked = document.documentElement.dataset.theme;
    return looks[printing ? "light" : asked || (dark.matches ? "dark" : "light")];
  }

  // Colours for the words that stand for them, and numbers for arrays in the page's pool.
  function translated(part, words) {
    if (typeof part === "string") return part[0] === "@" && part in words ? words[part] : part;
    if (Array.isArray(part)) return part.map((entry) => translated(entry, words));
    if (part === null || typeof part !== "object") return part;
    if ("pool" in part) return unpacked(part);
    return Object.fromEntries(Object.entries(part).map(([key, entry]) => [key, translated(entry, words)]));
  }

  // An image whose pixels are whole numbers of steps; the lowest number of a signed type is NaN.
  function unpacked({ pool, dtype, step, width }) {
    const [type, missing] = { u1: [Uint8Array, null], i1: [Int8Array, -128], i2: [Int16Array, -32768] }[dtype];
    const numbers = Float64Array.from(new type(arrays.get(pool)), (n) => (n === missing ? NaN : n * step));
    const rows = [];
    for (let start = 0; start < numbers.length; start += width) rows.push(numbers.subarray(start, start + width));
    return rows;
  }

  async function inflated(name) {
    const text = atob(document.getElementById(name).textContent);
    const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return [name, await new Response(stream).arrayBuffer()];
  }

  async function draw(holder, figure) {
    const request = { figure, arrays };
    requests.set(holder, request);
    const names = figure.data.flatMap(({ z }) => (z && z.pool ? [z.pool] : []));
    const found = await Promise.all([...new Set(names)].map(inflated));
    if (requests.get(holder) !== request) return; // another one was asked for meanwhile
    request.arrays = new Map(found);
    show(holder, request);
    request.drawn = true;
  }

  function show(holder, { figure, arrays: own }) {
    arrays = own;
    const canvas = document.createElement("div");
    canvas.className = "canvas";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", figure.alt || "Interactive plot");
    [canvas.style.minWidth, canvas.style.maxWidth] = figure.widths.map((width) => width + "px");
    if (printing) canvas.style.zoom = Math.min(1, PAPER / figure.widths[0]);
    const old = holder.querySelector(".canvas");
    if (old) Plotly.purge(old);
    const controls = document.createElement("div");
    controls.className = "controls";
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.append(canvas);
    holder.replaceChildren(controls, frame);

    const { updatemenus, sliders, ...layout } = translated(figure.layout, look());
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: look()["@edge"], activecolor: look()["@text"] };
    const menus = [...colourMenu(layout), ...updatemenus];
    Plotly.newPlot(canvas, translated(figure.data, look()), layout, config);
    for (const menu of menus) addMenu(controls, canvas, menu);
    for (const slider of sliders) addSlider(controls, canvas, slider);
  }

  function colourMenu(layout) {
    const axes = Object.keys(layout).filter((name) => name.startsWith("coloraxis"));
    if (!axes.length) return [];
    const buttons = scales.flatMap((scale) =>
      [false, true].map((reversed) => {
        const change = {};
        for (const axis of axes) {
          change[axis + ".colorscale"] = scale === "Default" ? layout[axis].colorscale : scale;
          change[axis + ".reversescale"] = reversed;
        }
        return { label: reversed ? scale + " (rev.)" : scale, method: "relayout", args: [change] };
      })
    );
    return [{ name: "Colorscale", active: 0, buttons }];
  }

  function control(controls, name, element) {
    const label = document.createElement("label");
    label.append(name + " ", element);
    controls.append(label);
    return element;
  }

  // What was chosen in an earlier plot is chosen in the next one, where it has the same choice.
  function start(name, labels, active, apply) {
    const wanted = labels.indexOf(chosen[name]);
    if (wanted >= 0 && wanted !== active) apply(wanted);
    return wanted >= 0 ? wanted : active;
  }

  function addMenu(controls, canvas, menu) {
    const select = control(controls, menu.name, document.createElement("select"));
    const labels = menu.buttons.map((button) => button.label);
    const apply = (k) => Plotly[menu.buttons[k].method](canvas, ...menu.buttons[k].args);
    select.append(...labels.map((label) => new Option(label)));
    select.selectedIndex = start(menu.name, labels, menu.active, apply);
    select.addEventListener("change", () => {
      chosen[menu.name] = select.value;
      apply(select.selectedIndex);
    });
  }

  function addSlider(controls, canvas, slider) {
    const range = control(controls, slider.name, document.createElement("input"));
    const shown = document.createElement("output");
    const labels = slider.steps.map((step) => step.label);
    Object.assign(range, { type: "range", min: 0, max: labels.length - 1, step: 1 });
    range.after(" ", shown);
    const tell = () => {
      shown.textContent = labels[range.value];
      range.setAttribute("aria-valuetext", labels[range.value]);
    };
    const apply = (k) => Plotly.update(canvas, ...slider.steps[k].args);
    range.value = start(slider.name, labels, slider.active, apply);
    tell();
    range.addEventListener("input", () => {
      chosen[slider.name] = labels[range.value];
      tell();
      apply(range.value);
    });
  }

  // At once, not when arrays are ready: a browser prints right after it says so.
  function again() {
    for (const [holder, request] of requests) if (request.drawn && holder.isConnected) show(holder, request);
  }

  function print(now) {
    printing = now;
    again();
  }

  dark.addEventListener("change", again);
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  return { draw, read };
})();
