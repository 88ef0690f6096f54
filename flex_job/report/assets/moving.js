// Joins the landscape of the latents, the sliders and the molecule's surface. The numbers are in #moving-data.
(function () {
  "use strict";
  const node = document.getElementById("moving-data");
  if (!node || !window.Plotly) return;
  const data = JSON.parse(node.textContent);
  const get = (id) => document.getElementById(id);

  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
  }
  const floats = (text) => new Float32Array(bytes(text));
  const body = (part) => ({ points: floats(part.points), modes: floats(part.modes) });
  const surface = body(data), thread = data.thread && body(data.thread), atoms = data.atoms && body(data.atoms);
  const faces = new Int32Array(bytes(data.faces));
  const planes = data.planes.map((plane) => ({
    ...plane,
    amounts: floats(plane.amounts),
    near: floats(plane.near),
    maps: Object.fromEntries(Object.entries(plane.maps).map(([name, text]) => [name, floats(text)])),
  }));
  const state = { plane: 0, at: planes[0].median.slice(), colour: "", playing: null, cartoon: null };
  const plane = () => planes[state.plane];

  // linear along each latent, between the points of the grid; `width` numbers at each
  function interpolated(table, width) {
    let rows = [[0, 1]];
    plane().values.forEach((values, axis) => {
      const last = values.length - 1;
      const place = ((state.at[axis] - values[0]) / (values[last] - values[0] || 1)) * last;
      const low = Math.min(Math.max(Math.floor(place), 0), last - 1), part = Math.min(Math.max(place - low, 0), 1);
      rows = rows.flatMap(([row, weight]) => [
        [row * values.length + low, weight * (1 - part)],
        [row * values.length + low + 1, weight * part],
      ]);
    });
    const out = new Float64Array(width);
    for (const [row, weight] of rows) for (let k = 0; k < width; k++) out[k] += weight * table[row * width + k];
    return out;
  }

  function moved({ points, modes }) {
    const amounts = interpolated(plane().amounts, data.count), size = points.length / 3;
    const axes = [0, 1, 2].map(() => new Float32Array(size));
    for (let p = 0; p < size; p++)
      for (let a = 0; a < 3; a++) {
        let value = points[3 * p + a];
        for (let m = 0; m < data.count; m++) value += amounts[m] * modes[3 * (m * size + p) + a];
        axes[a][p] = value;
      }
    return axes;
  }

  const SEE_THROUGH = 0.35; // of the surface with a model in it
  const font = { family: "system-ui, 'DejaVu Sans', Arial, sans-serif", size: 12, color: "#1f2933" };
  const quiet = { displayModeBar: false, responsive: true };

  function drawMolecule() {
    const column = (offset) => Int32Array.from({ length: faces.length / 3 }, (_, f) => faces[3 * f + offset]);
    const [x, y, z] = moved(surface), line = thread && moved(thread);
    const axis = (a) => ({ visible: false, range: data.span[a] });
    const sides = data.span.map(([low, high]) => high - low), largest = Math.max(...sides);
    const { width, height } = get("molecule").getBoundingClientRect(); // the camera's angle spans the height
    const away = 1.35 * Math.max(sides[1], (sides[0] * height) / width) / largest + sides[2] / largest / 2;
    return Plotly.newPlot("molecule", [{
      type: "mesh3d", x, y, z, i: column(0), j: column(1), k: column(2), intensity: floats(data.colour), cmin: 0, cmax: data.top,
      colorscale: data.ramp, hovertemplate: "moves %{intensity:.1f} Å<extra></extra>", flatshading: false,
      ...data.light,
      colorbar: {
        title: { text: "moves by, Å", side: "top" }, orientation: "h", thickness: 8, len: 0.5, x: 0.02, xanchor: "left", y: 0.01, yanchor: "bottom",
        outlinewidth: 0, nticks: 4,
      },
      opacity: thread ? SEE_THROUGH : 1,
    }, ...(thread ? [{
      type: "scatter3d", mode: "lines", x: line[0], y: line[1], z: line[2], hoverinfo: "skip", showlegend: false,
      line: { color: "#0072b2", width: 4 }, connectgaps: false,
    }] : [])], {
      margin: { l: 0, r: 0, t: 0, b: 0 }, font, paper_bgcolor: "rgba(0,0,0,0)", uirevision: "kept",
      scene: {
        xaxis: axis(0), yaxis: axis(1), zaxis: axis(2), aspectmode: "manual",
        aspectratio: { x: sides[0] / largest, y: sides[1] / largest, z: sides[2] / largest },
        camera: { eye: { x: 0, y: 0, z: away }, up: { x: 0, y: 1, z: 0 } },
      },
    }, quiet);
  }

  const lines = () => plane().latents.length === 1
    ? [{ type: "line", x0: state.at[0], x1: state.at[0], y0: 0, y1: 1, yref: "paper", line: { color: "#d55e00", width: 2 } }]
    : [0, 1].map((a) => ({
        type: "line", line: { color: "#d55e00", width: 1.5 },
        x0: a ? 0 : state.at[0], x1: a ? 1 : state.at[0], xref: a ? "paper" : "x",
        y0: a ? state.at[1] : 0, y1: a ? state.at[1] : 1, yref: a ? "y" : "paper",
      }));

  function drawLandscape() {
    const { latents, middles, maps, clusters } = plane();
    const count = maps[""], chosen = maps[state.colour], single = latents.length === 1;
    const title = state.colour || "particles";
    const bar = { title: { text: title, side: "right" }, thickness: 10, outlinewidth: 0 };
    const traces = [];
    if (single) {
      traces.push({ type: "bar", x: middles[0], y: Array.from(count), marker: { color: "#0072b2" }, hoverinfo: "none" });
      if (state.colour) traces.push({
        type: "scatter", mode: "lines", x: middles[0], y: Array.from(chosen, (value) => (Number.isNaN(value) ? null : value)),
        yaxis: "y2", line: { color: "#e69f00", width: 3 }, hoverinfo: "none",
      });
    } else {
      const value = (v, n) => (state.colour ? v : n > 0 ? Math.log10(n) : null);
      const rows = middles[1].map((_, b) => middles[0].map((_, a) => {
        const here = a * middles[1].length + b;
        return Number.isNaN(chosen[here]) ? null : value(chosen[here], count[here]);
      }));
      if (!state.colour) Object.assign(bar, { tickvals: [0, 1, 2, 3, 4, 5], ticktext: ["1", "10", "100", "1,000", "10⁴", "10⁵"] });
      traces.push({ type: "heatmap", x: middles[0], y: middles[1], z: rows, colorscale: "Cividis", colorbar: bar, hoverinfo: "none" });
    }
    const numbers = {
      type: "scatter", mode: "markers+text", x: clusters.map((c) => c[0]), y: clusters.map((c) => (single ? 0.07 * Math.max(...count) : c[1])),
      text: clusters.map((_, place) => `${place + 1}`), hoverinfo: "skip", textfont: { size: 11, color: "#1f2933" },
      marker: { size: 17, color: "#fff", line: { color: "#6b7785", width: 1 } }, cliponaxis: false, showlegend: false,
    };
    const range = (axis) => {
      const m = middles[axis], step = m[1] - m[0];
      return [m[0] - step / 2, m[m.length - 1] + step / 2];
    };
    return Plotly.react("landscape", [...traces, numbers], {
      margin: { l: 48, r: single && state.colour ? 52 : 8, t: 8, b: 42 }, font, bargap: 0, hovermode: "closest", showlegend: false, plot_bgcolor: "#fff", paper_bgcolor: "#fff",
      xaxis: { title: { text: `latent ${latents[0]}` }, range: range(0), zeroline: false, fixedrange: true },
      yaxis: single
        ? { title: { text: "particles" }, rangemode: "tozero", fixedrange: true }
        : { title: { text: `latent ${latents[1]}` }, range: range(1), zeroline: false, fixedrange: true },
      yaxis2: { title: { text: title }, overlaying: "y", side: "right", showgrid: false, zeroline: false, fixedrange: true },
      shapes: lines(),
    }, quiet);
  }

  function sliders() {
    const box = get("moving-sliders");
    box.replaceChildren(...plane().latents.map((number, axis) => {
      const label = document.createElement("label"), input = document.createElement("input"), values = plane().values[axis];
      Object.assign(input, { type: "range", min: values[0], max: values[values.length - 1], step: "any", value: state.at[axis] });
      input.id = `moving-latent-${number}`;
      input.addEventListener("input", () => { stop(); state.at[axis] = Number(input.value); show(); });
      label.append(`latent ${number}`, input);
      return label;
    }));
  }

  let cartoon = null; // once it was asked for: a promise of what moves it
  async function choose(choice) {
    const alone = choice === "model";
    get("molecule").hidden = alone;
    get("cartoon").hidden = !alone;
    state.cartoon = null;
    if (alone) {
      cartoon = cartoon || drawCartoon(get("cartoon"), data.atoms, data.ramp, data.top, moved(atoms));
      try {
        const found = await cartoon;
        if (get("moving-shown").value === choice) state.cartoon = found; // nobody changed their mind meanwhile
      } catch (error) {
        get("cartoon").textContent = "This browser cannot draw the model; it is in the map too.";
        console.warn(`cartoon: ${error.message}`);
      }
    } else {
      const model = choice.includes("model");
      Plotly.restyle("molecule", { visible: [true, model], opacity: [model ? SEE_THROUGH : 1, 1] });
    }
    show();
  }

  let waiting = false;
  function show() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      if (state.cartoon) {
        state.cartoon(moved(atoms));
      } else {
        const bodies = [surface, ...(thread ? [thread] : [])].map(moved);
        Plotly.restyle("molecule", { x: bodies.map((b) => b[0]), y: bodies.map((b) => b[1]), z: bodies.map((b) => b[2]) });
      }
      Plotly.relayout("landscape", { shapes: lines() });
      plane().latents.forEach((number, axis) => { get(`moving-latent-${number}`).value = state.at[axis]; });
      const near = interpolated(plane().near, 1)[0], told = get("moving-told");
      const where = plane().latents.map((number, axis) => `latent ${number}: ${state.at[axis].toFixed(2)}`).join(", ");
      const many = near >= 10 ? Math.round(near).toLocaleString("en") : near.toPrecision(2);
      told.textContent = near < 1 ? `${where} · no particle near: extrapolated` : `${where} · ${many} particles near`;
      told.className = near < 1 ? "none" : "";
    });
  }

  function stop() {
    if (state.playing !== null) cancelAnimationFrame(state.playing);
    state.playing = null;
    get("moving-play").textContent = "Play";
  }

  // forth and back along the first latent, and for two along an ellipse
  function play() {
    const { values, latents } = plane();
    const began = performance.now(), middle = values.map((v) => (v[0] + v[v.length - 1]) / 2);
    const half = values.map((v) => 0.45 * (v[v.length - 1] - v[0]));
    get("moving-play").textContent = "Stop";
    (function step(now) {
      const turn = ((now - began) / 5000) * 2 * Math.PI;
      state.at = latents.map((_, axis) => middle[axis] + half[axis] * (axis ? Math.cos(turn) : Math.sin(turn)));
      show();
      state.playing = requestAnimationFrame(step);
    })(began);
  }

  function point(event) {
    const found = event.points[0];
    if (!found || state.playing !== null) return;
    state.at = plane().latents.length === 1 ? [found.x] : [found.x, found.y];
    show();
  }

  async function start() {
    await drawMolecule();
    await drawLandscape();
    sliders();
    get("landscape").on("plotly_hover", point);
    get("landscape").on("plotly_click", (event) => { stop(); point(event); });
    get("moving-play").addEventListener("click", () => (state.playing === null ? play() : stop()));
    get("moving-colour").addEventListener("change", (event) => { state.colour = event.target.value; drawLandscape(); });
    const shown = get("moving-shown");
    if (shown) shown.addEventListener("change", () => choose(shown.value));
    const choice = get("moving-plane");
    if (choice) choice.addEventListener("change", () => {
      stop();
      state.plane = Number(choice.value);
      state.at = plane().median.slice();
      sliders();
      drawLandscape().then(show);
    });
    show();
  }
  start().catch((error) => {
    get("molecule").textContent = "This browser cannot draw the surface (WebGL is missing); the figures below do not need it.";
    console.warn(`moving surface: ${error.message}`);
  });
})();
