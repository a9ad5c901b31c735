"""The report of a run as its reader uses it, in a browser, and against the tables on disk."""

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from browser import browser, opened_page
from totalvi.data.simulate import simulate, simulate_raw
from totalvi.figures.cell_maps import point_density
from totalvi.report.build import build_report
from totalvi.run.run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning"),
]

EVIL = "<script>alert(1)</script>"
PROTEINS = ["CD3", "CD4", EVIL, "</script><img src=x onerror=alert(2)>", 'a"b']
CONTROL = "IgG1"
MINUS = "\u2212"
VALUE = "Bokeh.documents[0].get_model_by_name('map_cells').data.value"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = simulate(
        n_cells=150,
        n_genes=30,
        n_proteins=6,
        n_batches=2,
        n_cell_types=3,
        seed=2,
        store_truth=False,
    )
    data["prot"].var_names = [*PROTEINS, CONTROL]
    data["prot"].var["control"] = [False] * 5 + [True]
    data["rna"].var_names = [EVIL + "gene", *data["rna"].var_names[1:]]
    data.update()
    scratch = tmp_path_factory.mktemp("run")
    simulate_raw(data, n_empty=200, seed=3).write(scratch / "raw.h5mu")
    made = run(
        data,
        scratch / "out",
        raw=scratch / "raw.h5mu",
        batch_key="batch",
        labels_key="cell_type",
        max_epochs=30,
    )
    build_report(made.folder)
    return made.folder


@pytest.fixture(scope="module")
def chromium() -> Iterator:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def opened(folder: Path, chromium) -> tuple:
    return opened_page(chromium, folder / "report.html", 1280)


def cells_of(page, expression: str) -> np.ndarray:
    return np.array(page.evaluate(f"Array.from({expression})"), dtype=float)


def de_table(folder: Path) -> pd.DataFrame:
    path = folder / "tables" / "differential_expression.csv.gz"
    return pd.read_csv(path, dtype={"group1": str}, keep_default_na=False)


def shown_rows(page) -> list[list[str]]:
    read = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return page.eval_on_selector_all("#de-table tbody tr", read)


def test_nothing_is_complained_about_or_fetched(opened: tuple) -> None:
    page, said = opened
    assert said == []
    assert page.locator("#failure").is_hidden()
    heads = page.locator("article h4").all_inner_texts()
    assert heads == [*PROTEINS, f"{CONTROL} isotype control"]


def test_every_figure_has_words_and_every_control_a_label(opened: tuple) -> None:
    page, _ = opened
    for image in page.locator("[role=img]").all():
        assert len(image.get_attribute("aria-label")) > 20
    unlabelled = "controls => controls.filter(c => !c.labels.length).map(c => c.id)"
    assert page.eval_on_selector_all("main select, main input", unlabelled) == []
    assert page.locator(".plot").count() == page.locator(".plot .bk-Figure").count() > 8


def test_numbers_of_antibodies_are_those_of_the_tables(opened: tuple, folder: Path) -> None:
    page, _ = opened
    names = ("proteins", "background", "isotype_controls", "ambient")
    tables = {name: pd.read_csv(folder / "tables" / f"{name}.csv", index_col=0) for name in names}
    tables["ambient"]["log_mean"] = np.exp(tables["ambient"]["log_mean"])
    seen = set()
    for name, card in zip([*PROTEINS, CONTROL], page.locator("article").all(), strict=True):
        for cell in card.locator("dd").all():
            table, column = (cell.get_attribute(f"data-{what}") for what in ("table", "column"))
            seen.add((table, column))
            said = cell.inner_text().removesuffix(" %").replace(",", "").split(" to ")
            found = tables[table].loc[[name], column]
            ends = [found.min(), found.max()]
            expected = ends if len(said) == 2 else ends[:1]
            for text, value in zip(said, expected, strict=True):
                assert text == "-" if np.isnan(value) else number_is(text, value)
    assert len(seen) == 8


def number_is(text: str, value: float) -> bool:
    decimals = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5001 * 10.0**-decimals


def test_antibodies_that_failed_come_first(opened: tuple, folder: Path) -> None:
    page, _ = opened
    assert page.locator("main > section").first.get_attribute("id") == "warnings"
    table = pd.read_csv(folder / "tables" / "proteins.csv", keep_default_na=False)
    failed = table.loc[table["warning"] != "", "protein"]
    assert len(failed) > 0
    assert set(page.locator(".failures a").all_inner_texts()) == set(failed)
    high = pd.read_csv(folder / "tables" / "background.csv", keep_default_na=False)
    high = high[high["warning"] != ""]
    rows = page.locator("#high-background tbody tr")
    for row, (_, numbers) in zip(rows.all(), high.iterrows(), strict=True):
        name, *_, times = row.locator("th, td").all_inner_texts()
        assert (name, number_is(times, 2 ** numbers["log2_over_controls"])) == (
            numbers["protein"],
            True,
        )


def test_empty_droplets_are_those_of_the_table(opened: tuple, folder: Path) -> None:
    page, _ = opened
    table = pd.read_csv(folder / "tables" / "ambient.csv")
    rows = page.locator("#droplet-table tbody tr").all()
    assert len(rows) == 2
    for row in rows:
        batch, droplets, counts, most = (cell.inner_text() for cell in row.locator("th, td").all())
        of_batch = table[table["batch"] == batch]
        assert droplets == str(of_batch["n_droplets"].max())
        assert number_is(counts.replace(",", ""), np.exp(of_batch["log_mean"]).sum())
        assert most.startswith(of_batch.loc[of_batch["log_mean"].idxmax(), "protein"])


def test_batches_and_calibration_are_those_of_the_tables(opened: tuple, folder: Path) -> None:
    page, _ = opened
    batches = pd.read_csv(folder / "tables" / "batches.csv", index_col="batch")
    for row in page.locator("#mixing-table tbody tr").all():
        batch, *_, mixing = row.locator("th, td").all_inner_texts()
        assert number_is(mixing, batches.loc[batch, "mixing"])
    calibration = pd.read_csv(folder / "tables" / "predictive_calibration.csv")
    said = page.locator("#calibration tbody td:last-child").all_inner_texts()
    shares = [float(text.removesuffix(" %")) for text in said]
    np.testing.assert_allclose(shares, 100 * calibration["coverage"], atol=0.051)


def test_the_search_box_recolours_the_right_cells(opened: tuple, folder: Path) -> None:
    page, said = opened
    with h5py.File(folder / "results.h5mu") as file:
        umap, raw = file["obsm/X_umap"][:], file["mod/prot/X"][:]
        denoised = file["mod/prot/layers/denoised"][:]
    source = "Bokeh.documents[0].get_model_by_name('map_cells').data"
    drawn = np.stack([cells_of(page, f"{source}.umap_{axis}") for axis in (1, 2)], axis=1)
    distance = np.linalg.norm(drawn[:, None] - umap[None], axis=2)
    cell = distance.argmin(axis=1)
    assert sorted(cell) == list(range(len(umap)))
    page.fill("#feature", EVIL)
    page.wait_for_function(
        "document.getElementById('map-value-words').textContent.startsWith('<script>')"
    )
    expected = np.arcsinh(denoised[cell, 2] / 5)
    step = np.ptp(expected) / 1999
    np.testing.assert_allclose(cells_of(page, VALUE), expected, atol=step)
    page.select_option("#layer", "raw")
    page.wait_for_function(
        "document.getElementById('map-value-words').textContent.includes('raw counts')"
    )
    np.testing.assert_allclose(cells_of(page, VALUE), np.arcsinh(raw[cell, 2] / 5), atol=1e-5)
    page.fill("#feature", "no such thing")
    assert "No protein or gene" in page.locator("#map-value-words").inner_text()
    assert said == []


def test_groups_are_drawn_and_named(opened: tuple) -> None:
    page, _ = opened
    page.select_option("#category", label="batch")
    source = "Bokeh.documents[0].get_model_by_name('map_cells').data.category"
    codes = cells_of(page, source)
    assert np.bincount(codes.astype(int)).tolist() == [75, 75]
    legends = page.locator(".legend-of:visible")
    assert legends.count() == 1
    assert "batch_1 (75)" in legends.inner_text()
    page.select_option("#category", label="cluster")


def test_biaxial_plots_show_the_chosen_proteins(opened: tuple, folder: Path) -> None:
    page, _ = opened
    page.select_option("#protein-x", label='a"b')
    page.select_option("#protein-y", label="CD3")
    page.wait_for_function("document.getElementById('biaxial-words').textContent.startsWith('CD3')")
    with h5py.File(folder / "results.h5mu") as file:
        denoised = file["mod/prot/layers/denoised"][:]
    model = "Bokeh.documents[0].get_model_by_name('biaxial_denoised').data"
    x, y, density = (cells_of(page, f"{model}.{name}") for name in ("x", "y", "density"))
    np.testing.assert_allclose(np.sort(x), np.sort(np.arcsinh(denoised[:, 4] / 5)), atol=2e-3)
    np.testing.assert_allclose(density, point_density(x, y), atol=0.02)
    page.click("#swap")
    assert page.locator("#protein-x option:checked").inner_text() == "CD3"


def test_the_table_is_sorted_filtered_and_right(opened: tuple, folder: Path) -> None:
    page, _ = opened
    table = de_table(folder)
    table = table[table["comparison"] == page.locator("#comparison option:checked").inner_text()]
    page.click("#de-table button[data-column=lfc_median]")
    expected = table.sort_values("lfc_median", ascending=False, kind="stable")
    rows = shown_rows(page)
    assert len(rows) == 20
    said = [float(row[2].replace(MINUS, "-")) for row in rows]
    np.testing.assert_allclose(said, expected["lfc_median"].iloc[:20], atol=0.0051)
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("log2 fold change")
    page.click("#de-table button[data-column=lfc_median]")
    said = [float(row[2].replace(MINUS, "-")) for row in shown_rows(page)]
    assert said == sorted(said)
    page.select_option("#kind", "protein")
    assert {row[0] for row in shown_rows(page)} == set(PROTEINS)
    page.fill("#find", "cd3")
    ((name, kind, change, interval, _, mean, *_),) = shown_rows(page)
    row = table[(table["feature"] == "CD3") & (table["modality"] == "protein")].iloc[0]
    assert (name, kind) == ("CD3", "protein")
    low, high = interval.replace(MINUS, "-").split(" to ")
    for text, column in (
        (change, "lfc_median"), (low, "lfc_ci_low"), (high, "lfc_ci_high"), (mean, "raw_mean1")
    ):  # fmt: skip
        assert float(text.replace(MINUS, "-")) == pytest.approx(row[column], abs=0.0051)
    page.fill("#find", "")
    page.select_option("#kind", "")
    page.check("#called")
    n_called = (table.filter(like="is_de_fdr").iloc[:, 0].astype(str) == "True").sum()
    assert page.locator("#table-words").inner_text().startswith(f"{n_called} rows")
    page.uncheck("#called")


def test_a_wide_table_scrolls_below_a_caption_that_wraps(chromium, folder: Path) -> None:
    page, said = opened_page(chromium, folder / "report.html", 390)
    read = """frames => frames.map(frame => [frame, frame.querySelector("table"),
      frame.querySelector("caption")]).filter(([, , caption]) => caption)
      .map(parts => parts.map(part => part.offsetWidth))"""
    widths = page.eval_on_selector_all("section .scroll", read)
    assert any(table > frame for frame, table, _ in widths)
    assert all(caption <= frame <= 390 for frame, _, caption in widths)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert said == []
