// The atomic model in Mol*, which is unpacked from the page when it is first wanted. window.drawCartoon resolves to a
// function that takes new coordinates, three arrays in the order of the atoms in the file.
(function () {
  "use strict";
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const unpacked = (text) => new Response(new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const kept = (id) => unpacked(document.getElementById(id).textContent);

  async function load() {
    if (window.molstar) return;
    if (!window.DecompressionStream) throw new Error("DecompressionStream is missing");
    const style = document.createElement("style"), script = document.createElement("script");
    [style.textContent, script.textContent] = await Promise.all(["molstar-css", "molstar-js"].map(kept));
    document.head.append(style, script);
  }

  // One frame of a trajectory in CHARMM's DCD format: Fortran records, each between two copies of its length.
  function dcd(axes) {
    const count = axes[0].length, record = 4 * count + 8;
    const view = new DataView(new ArrayBuffer(92 + 92 + 12 + 3 * record));
    const numbers = (at, ...values) => values.forEach((value, place) => view.setInt32(at + 4 * place, value, true));
    numbers(0, 84, 0x44524f43, 1, 0, 1); // "CORD", frames, first step, steps between frames
    numbers(84, 24, 84); // CHARMM's version
    numbers(92, 84, 1), numbers(92 + 88, 84); // one empty line of title
    numbers(184, 4, count, 4);
    axes.forEach((values, axis) => {
      const start = 196 + axis * record;
      numbers(start, 4 * count), numbers(start + record - 4, 4 * count);
      values.forEach((value, place) => view.setFloat32(start + 4 + 4 * place, value, true));
    });
    return new Uint8Array(view.buffer);
  }

  // The sphere about the middle of the atoms that holds them all.
  function around(axes) {
    const center = axes.map((values) => values.reduce((sum, value) => sum + value, 0) / values.length);
    let square = 0;
    for (let p = 0; p < axes[0].length; p++) square = Math.max(square, axes.reduce((sum, values, a) => sum + (values[p] - center[a]) ** 2, 0));
    return { center, radius: Math.sqrt(square) };
  }

  window.drawCartoon = async function (element, { cif, up, towards }, ramp, top, axes) {
    await load();
    const model = await unpacked(cif);
    const viewer = await window.molstar.Viewer.create(element, {
      layoutIsExpanded: false, layoutShowControls: false, layoutShowRemoteState: false, layoutShowSequence: false, layoutShowLog: false,
      layoutShowLeftPanel: false, viewportShowControls: false, viewportShowSettings: false, viewportShowSelectionMode: false,
      viewportShowAnimation: false, viewportShowTrajectoryControls: false, viewportBackgroundColor: "#f4f6f8", volumeStreamingDisabled: true,
      extensions: [],
    });
    const { plugin } = viewer, { structure } = plugin.managers;
    const { coords } = await viewer.loadTrajectory({
      model: { kind: "model-data", data: model, format: "mmcif" }, modelLabel: "model",
      coordinates: { kind: "coordinates-data", data: dcd(axes), format: "dcd" }, coordinatesLabel: "moved",
    });
    const colors = ramp.map(([, colour]) => parseInt(colour.slice(1), 16)).reverse(); // Mol* takes the highest first
    await structure.component.applyPreset(structure.hierarchy.current.structures, "polymer-and-ligand", {
      theme: { globalName: "uncertainty", globalColorParams: { domain: [0, top], list: { kind: "interpolate", colors } } },
    });
    const { center, radius } = around(axes);
    plugin.canvas3d.setProps({ camera: { manualReset: true } }); // it stays where it is put
    plugin.canvas3d.requestCameraReset({
      durationMs: 0, snapshot: (_, camera) => camera.getInvariantFocus(center, radius, up, towards.map((value) => -value)),
    });
    const data = plugin.state.data, source = data.cells.get(coords.ref).transform.parent;
    let busy = false, next = null;
    return async function move(places) { // the newest only, where drawing is slower than asking
      next = places;
      if (busy) return;
      busy = true;
      while (next) {
        const now = next;
        next = null;
        await plugin.build().to(source).update({ data: dcd(now), label: "moved" }).commit();
      }
      busy = false;
    };
  };
})();
