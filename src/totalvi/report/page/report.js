"use strict";
// Names come from data: they enter the page as text only, never as markup.
(async () => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("report-data").textContent);
  const TYPES = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array };
  const ROWS_OF_PAGE = 20;

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }
  const unpackJson = async (text) => JSON.parse(new TextDecoder().decode(await unpack(text)));

  // Values of a packed layer as places on its axis; NaN where nothing was measured.
  const kept = new Map();
  async function places(feature, name) {
    const key = `${data.features.indexOf(feature)} ${name}`;
    if (!kept.has(key)) {
      const layer = feature.layers[name];
      const codes = new TYPES[layer.type](await unpack(layer.data));
      const missing = 256 ** codes.BYTES_PER_ELEMENT - 1;
      const cofactor = data.scales[feature.kind].cofactor;
      const values = new Float32Array(codes.length);
      codes.forEach((code, i) => {
        const value = layer.low + layer.step * code;
        values[i] = code === missing ? NaN : layer.is_place ? value : Math.asinh(value / cofactor);
      });
      if (kept.size > 60) kept.delete(kept.keys().next().value);
      kept.set(key, values);
    }
    return kept.get(key);
  }

  function fill(select, names) {
    names.forEach((name, i) => select.add(new Option(name, String(i))));
  }
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  // ---- figures
  const document_json = await unpackJson(data.document);
  const roots = {};
  for (const [name, id] of Object.entries(data.figure_ids)) roots[id] = byId(`figure-${name}`);
  await Bokeh.embed.embed_items({ report: document_json }, [{ docid: "report", roots, root_ids: Object.keys(roots) }]);
  const bokeh = Bokeh.documents[Bokeh.documents.length - 1];
  const model = (name) => bokeh.get_model_by_name(name);
  const weights = new Float32Array(await unpack(data.weights));

  // ---- maps
  const cells = model("map_cells");
  const features = data.features.map((feature) => ({ label: `${feature.name} (${feature.kind})`, feature }));
  const columns = { ...cells.data };
  function setColumn(name, values) {
    columns[name] = values;
    cells.data = { ...columns };
  }

  const categories = [];
  for (const category of data.categories) {
    const codes = new TYPES[category.type](await unpack(category.data));
    const missing = 256 ** codes.BYTES_PER_ELEMENT - 1;
    categories.push({ ...category, codes: Float32Array.from(codes, (c) => (c === missing ? NaN : c)) });
  }
  function showCategory() {
    const category = categories[byId("category").value];
    const mapper = model("category_mapper");
    mapper.palette = category.colors;
    mapper.low = -0.5;
    mapper.high = category.names.length - 0.5;
    const labels = category.labels.text ? category.labels : { x: [], y: [], text: [] };
    model("labels_source").data = labels;
    setColumn("category", category.codes);
    document.querySelectorAll(".legend-of").forEach((legend) => {
      legend.hidden = legend.dataset.category !== category.name;
    });
    byId("map-category-words").textContent =
      `${data.cells.toLocaleString("en")} cells by ${category.name}: ${category.names.length} groups.`;
    byId("figure-map_category").setAttribute("aria-label", `UMAP of the cells coloured by ${category.name}. The list below names the groups and their sizes.`);
  }

  function findFeature(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return undefined;
    return (
      features.find((f) => f.label.toLowerCase() === wanted) ||
      features.find((f) => f.feature.name.toLowerCase() === wanted) ||
      features.find((f) => f.label.toLowerCase().startsWith(wanted)) ||
      features.find((f) => f.label.toLowerCase().includes(wanted))
    );
  }
  let shown = features[0];
  async function showFeature(found) {
    shown = found;
    const { feature } = found;
    const layer = byId("layer");
    for (const option of layer.options) option.disabled = !feature.layers[option.value];
    if (!feature.layers[layer.value]) layer.value = feature.layers.denoised ? "denoised" : "raw";
    const name = layer.value;
    const values = await places(feature, name);
    if (shown !== found || layer.value !== name) return; // the reader has picked another meanwhile
    const known = values.filter((v) => !Number.isNaN(v)).sort();
    const at = (q) => known[Math.floor(q * (known.length - 1))];
    const is_share = name === "foreground";
    const cofactor = data.scales[feature.kind].cofactor;
    const low = is_share || !known.length ? 0 : at(0.01);
    const least = Math.asinh(((feature.kind === "protein" ? 10 : 1) + cofactor * Math.sinh(low)) / cofactor);
    const high = is_share ? 1 : Math.max(known.length ? at(0.995) : 1, least);
    const mapper = model("value_mapper");
    mapper.low = low;
    mapper.high = high;
    const ticks = is_share ? [[0, "0"], [0.5, "0.5"], [1, "1"]] : data.scales[feature.kind].ticks;
    const bar = model("color_bar");
    bar.ticker.minor_ticks = [];
    bar.ticker.ticks = ticks.map(([place]) => place);
    bar.major_label_overrides = new Map(ticks);
    setColumn("value", values);
    const what = {
      denoised: feature.kind === "protein" ? "denoised counts" : "denoised counts in 10,000",
      raw: "raw counts",
      foreground: "probability of being foreground",
    }[name];
    const words = `${found.label}: ${what}, pale is low and dark is high; grey is not measured.`;
    byId("map-value-words").textContent = words;
    byId("figure-map_value").setAttribute("aria-label", `UMAP of the cells coloured by ${words}`);
  }
  function search() {
    const text = byId("feature").value;
    const found = findFeature(text);
    if (found) return showFeature(found);
    if (text.trim()) byId("map-value-words").textContent = `No protein or gene of this page is named like “${text}”.`;
    return undefined;
  }
  fill(byId("category"), categories.map((c) => c.name));
  byId("category").addEventListener("change", showCategory);
  features.forEach(({ label }) => byId("feature-names").append(new Option("", label)));
  byId("feature").addEventListener("input", search);
  byId("layer").addEventListener("change", () => showFeature(shown));
  const genes = data.features.filter((f) => f.kind === "gene").length;
  byId("gene-count").textContent = `This page holds all proteins and the ${genes} genes that mark the clusters most surely; ${data.cells_file} has all genes.`;

  // ---- biaxial plots
  const proteins = data.features.filter((f) => f.kind === "protein");
  const BINS = 80;
  function density(x, y) {
    // As totalvi.figures.cell_maps.point_density: smoothed counts of a grid, log1p, of the highest.
    const result = new Float32Array(x.length);
    const range = (values) => {
      let low = Infinity, high = -Infinity;
      values.forEach((v, i) => { if (!Number.isNaN(x[i] + y[i])) { low = Math.min(low, v); high = Math.max(high, v); } });
      return [low, high > low ? high : low + 1];
    };
    const [x_low, x_high] = range(x), [y_low, y_high] = range(y);
    const bin = (v, low, high) => clamp(Math.floor((BINS * (v - low)) / (high - low)), 0, BINS - 1);
    let grid = new Float64Array(BINS * BINS);
    const place = new Int32Array(x.length).fill(-1);
    x.forEach((v, i) => {
      if (Number.isNaN(v + y[i])) return;
      place[i] = BINS * bin(v, x_low, x_high) + bin(y[i], y_low, y_high);
      grid[place[i]] += weights[i];
    });
    for (const step of [BINS, 1]) {
      const next = new Float64Array(grid.length);
      grid.forEach((n, at) => {
        const along = step === 1 ? at % BINS : Math.floor(at / BINS);
        next[at] = (2 * n + (along > 0 ? grid[at - step] : 0) + (along < BINS - 1 ? grid[at + step] : 0)) / 4;
      });
      grid = next;
    }
    let highest = 0;
    place.forEach((at, i) => { if (at >= 0) { result[i] = Math.log1p(grid[at]); highest = Math.max(highest, result[i]); } });
    return result.map((v) => v / (highest || 1));
  }
  // Equal counts are spread by up to half a count, always in the same way.
  function spread(values, seed) {
    const cofactor = data.scales.protein.cofactor;
    let state = seed;
    return values.map((v) => {
      state = (Math.imul(state, 1664525) + 1013904223) | 0;
      return Math.asinh(Math.sinh(v) + ((state >>> 8) / 2 ** 24 - 0.5) / cofactor);
    });
  }
  async function showBiaxial() {
    const pair = [proteins[byId("protein-x").value], proteins[byId("protein-y").value]];
    for (const name of ["raw", "denoised"]) {
      let [x, y] = await Promise.all(pair.map((protein) => places(protein, name)));
      if (name === "raw") [x, y] = [spread(x, 1), spread(y, 2)];
      const drawn = model(`figure_biaxial_${name}`);
      drawn.below[0].axis_label = pair[0].name;
      drawn.left[0].axis_label = pair[1].name;
      model(`biaxial_${name}`).data = { x, y, density: density(x, y) };
      byId(`figure-biaxial_${name}`).setAttribute("aria-label", `${name} counts: ${pair[1].name} against ${pair[0].name}, a dot a cell.`);
    }
    byId("biaxial-words").textContent = `${pair[1].name} (up) against ${pair[0].name} (across), ${data.cells.toLocaleString("en")} cells.`;
  }
  function fillProteins() {
    const names = proteins.map((p) => p.name);
    fill(byId("protein-x"), names);
    fill(byId("protein-y"), names);
    // What an immunologist looks at first, where the panel has it.
    const first = (...patterns) => patterns.map((p) => names.findIndex((n) => p.test(n))).find((i) => i >= 0);
    const x = first(/^(adt[-_ ]?)?cd4(?![0-9])/i, /^(adt[-_ ]?)?cd3(?![0-9])/i) ?? 0;
    const y = first(/^(adt[-_ ]?)?cd8/i, /^(adt[-_ ]?)?cd19(?![0-9])/i) ?? (x === 0 ? Math.min(1, names.length - 1) : 0);
    byId("protein-x").value = String(x);
    byId("protein-y").value = String(y);
    shown = features[x];
    byId("feature").value = shown.label;
    for (const id of ["protein-x", "protein-y"]) byId(id).addEventListener("change", showBiaxial);
    byId("swap").addEventListener("click", () => {
      [byId("protein-x").value, byId("protein-y").value] = [byId("protein-y").value, byId("protein-x").value];
      showBiaxial();
    });
  }

  // ---- differential expression
  async function startDifferential(de) {
    const table = await unpackJson(de.columns);
    table.name = table.feature.map((i) => de.names[i]);
    let page = 0, sorted = { column: "lfc_ci_low", down: true };
    const rowsOf = new Map();
    table.comparison.forEach((c, i) => { if (!rowsOf.has(c)) rowsOf.set(c, []); rowsOf.get(c).push(i); });
    fill(byId("comparison"), de.comparisons);
    const text = (value, decimals) => (value === null ? "–" : value.toFixed(decimals).replace("-", "−"));

    function chosen() {
      const kind = byId("kind").value, find = byId("find").value.trim().toLowerCase(), called = byId("called").checked;
      const rows = (rowsOf.get(Number(byId("comparison").value)) || []).filter((i) =>
        (!kind || (kind === "protein") === Boolean(table.is_protein[i])) &&
        (!called || table.called[i]) && table.name[i].toLowerCase().includes(find));
      const column = table[sorted.column], sign = sorted.down ? -1 : 1;
      const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
      return rows.sort((i, j) => {
        if (column[i] === null || column[j] === null) return (column[i] === null) - (column[j] === null);
        return sign * order(column[i], column[j]) || i - j;
      });
    }
    function show() {
      const rows = chosen();
      const pages = Math.max(Math.ceil(rows.length / ROWS_OF_PAGE), 1);
      page = clamp(page, 0, pages - 1);
      const body = byId("de-table").tBodies[0];
      body.replaceChildren(...rows.slice(page * ROWS_OF_PAGE, (page + 1) * ROWS_OF_PAGE).map((i) => {
        const row = document.createElement("tr");
        const add = (words, numeric = true) => { const cell = row.insertCell(); cell.textContent = words; if (numeric) cell.className = "num"; };
        const head = document.createElement("th");
        head.scope = "row";
        head.textContent = table.name[i];
        row.append(head);
        add(table.is_protein[i] ? "protein" : "gene", false);
        add(text(table.lfc_median[i], 2));
        add(table.lfc_ci_low[i] === null ? "–" : `${text(table.lfc_ci_low[i], 2)} to ${text(table.lfc_ci_high[i], 2)}`);
        add(text(table.bayes_factor[i], 1));
        add(text(table.raw_mean1[i], 2));
        add(text(table.raw_mean2[i], 2));
        for (const name of ["non_zeros_proportion1", "non_zeros_proportion2"]) add(table[name][i] === null ? "–" : text(100 * table[name][i], 1));
        add(table.called[i] ? "yes" : "no", false);
        return row;
      }));
      document.querySelectorAll("#de-table thead button").forEach((button) => {
        const is_sorted = button.dataset.column === sorted.column;
        button.parentElement.setAttribute("aria-sort", is_sorted ? (sorted.down ? "descending" : "ascending") : "none");
      });
      byId("table-words").textContent = `${rows.length.toLocaleString("en")} rows of ${de.comparisons[byId("comparison").value]}.`;
      byId("page-words").textContent = `page ${page + 1} of ${pages}`;
      byId("previous").disabled = page === 0;
      byId("next").disabled = page === pages - 1;
      const dots = rows.filter((i) => table.lfc_median[i] !== null && table.bayes_factor[i] !== null);
      model("features_source").data = {
        x: Float32Array.from(dots, (i) => table.lfc_median[i]),
        y: Float32Array.from(dots, (i) => table.bayes_factor[i]),
        kind: Uint8Array.from(dots, (i) => (table.called[i] ? 1 + table.is_protein[i] : 0)),
        name: dots.map((i) => table.name[i]),
      };
    }
    const restart = () => { page = 0; show(); };
    for (const id of ["comparison", "kind", "called"]) byId(id).addEventListener("change", restart);
    byId("find").addEventListener("input", restart);
    byId("previous").addEventListener("click", () => { page -= 1; show(); });
    byId("next").addEventListener("click", () => { page += 1; show(); });
    document.querySelectorAll("#de-table thead button").forEach((button) => {
      button.addEventListener("click", () => {
        const { column } = button.dataset;
        sorted = { column, down: sorted.column === column ? !sorted.down : column !== "name" };
        restart();
      });
    });
    show();
  }

  // ---- links from the warnings to the proteins' pictures
  document.querySelectorAll("a[data-protein]").forEach((link) => {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const card = [...document.querySelectorAll("article[data-protein]")].find((c) => c.dataset.protein === link.dataset.protein);
      card.scrollIntoView({ block: "center" });
      card.focus();
    });
  });

  fillProteins();
  showCategory();
  await showFeature(shown);
  await showBiaxial();
  if (data.differential) await startDifferential(data.differential);
  document.body.dataset.ready = "yes";
})().catch((error) => {
  const place = document.getElementById("failure");
  place.hidden = false;
  place.textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for the maps and tables of this page: any of 2023 or later shows them."
    : `The maps and tables of this page could not be drawn: ${error.message}`;
  throw error;
});
