"""Empty droplets are told from cells, debris and blank barcodes, and give the ambient profile."""

import gzip
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest

import totalvi
from totalvi.data.background.ambient import estimate_ambient, pooled_ambient
from totalvi.data.background.droplets import choose_empty_droplets
from totalvi.errors import DataError
from totalvi.run.convert import convert_counts

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")


def simulated(seed: int, n_batches: int = 1) -> tuple[mudata.MuData, mudata.MuData]:
    cells = totalvi.simulate(
        n_cells=200, n_genes=100, n_proteins=12, n_batches=n_batches, n_ubiquitous=4, seed=seed
    )
    return cells, totalvi.simulate_raw(cells, n_empty=800, seed=seed)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cells_known", [True, False])
def test_chosen_droplets_are_empty(seed: int, cells_known: bool) -> None:
    _, raw = simulated(seed)
    kind = raw.obs["kind"].to_numpy()
    is_cell = (kind == "cell") & cells_known
    rows = np.arange(raw.n_obs) if cells_known else np.flatnonzero(kind != "cell")
    total = np.asarray(raw["rna"].X.sum(axis=1)).ravel()
    chosen = rows[choose_empty_droplets(total[rows], raw["prot"].X[rows], is_cell[rows])]
    found = pd.Series(kind[chosen]).value_counts()
    assert found["empty"] > 700
    assert found.get("cell", 0) == 0
    assert found.get("debris", 0) < 0.05 * found["empty"]
    assert found.get("blank", 0) < 0.2 * found["empty"]


@pytest.mark.parametrize("seed", range(3))
def test_the_ambient_profile_is_that_of_the_truth(seed: int) -> None:
    cells, raw = simulated(seed, n_batches=2)
    table = totalvi.ambient_profile(raw, cells, batch_key="batch")
    assert set(table["batch"]) == {"batch_0", "batch_1"}
    truth = raw["prot"].varm["log_ambient_mean"]
    for code, batch in enumerate(["batch_0", "batch_1"]):
        rows = table[table["batch"] == batch].set_index("protein").loc[raw["prot"].var_names]
        difference = rows["log_mean"].to_numpy() - truth[:, code]
        assert np.abs(difference - difference.mean()).max() < 5 * rows["standard_error"].max()
        assert np.abs(difference.mean()) < 0.2
        assert (rows["log_sd"] > 0.2).all()
        assert (rows["log_sd"] < 0.9).all()


def test_one_matrix_for_each_batch_is_the_same_as_one_with_batches() -> None:
    cells, raw = simulated(0, n_batches=2)
    together = totalvi.ambient_profile(raw, cells, batch_key="batch")
    apart = {name: raw[raw.obs["batch"] == name].copy() for name in ("batch_1", "batch_0")}
    by_batch = totalvi.ambient_profile(apart, cells, batch_key="batch")
    columns = ["batch", "protein"]
    pd.testing.assert_frame_equal(
        together.sort_values(columns, ignore_index=True),
        by_batch.sort_values(columns, ignore_index=True),
    )
    with pytest.raises(DataError, match='"batch_7"'):
        totalvi.ambient_profile({"batch_7": raw}, cells, batch_key="batch")


def test_droplets_without_the_cells_do() -> None:
    cells, raw = simulated(1)
    only = raw[raw.obs["kind"] == "empty"].copy()
    assert len(totalvi.ambient_profile(only, cells)) == 12
    with pytest.raises(DataError, match="an estimate needs 20"):
        totalvi.ambient_profile(only[:12].copy())


def matrix_folder(data: mudata.MuData, barcodes: list[str], folder: Path) -> Path:
    """Write a matrix folder as Cell Ranger does."""
    folder.mkdir()
    counts = np.concatenate([data["rna"].X.toarray(), data["prot"].X], axis=1).astype(int)
    features = [f"{name}\t{name}\tGene Expression" for name in data["rna"].var_names]
    features += [f"{name}\t{name}\tAntibody Capture" for name in data["prot"].var_names]
    cell, feature = np.nonzero(counts)
    head = ["%%MatrixMarket matrix coordinate integer general"]
    head += [f"{counts.shape[1]} {counts.shape[0]} {len(cell)}"]
    entries = [f"{f + 1} {c + 1} {counts[c, f]}" for c, f in zip(cell, feature, strict=True)]
    for name, lines in (
        ("features.tsv.gz", features),
        ("barcodes.tsv.gz", barcodes),
        ("matrix.mtx.gz", head + entries),
    ):
        (folder / name).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return folder


def test_read_takes_both_matrices_of_a_run(tmp_path: Path) -> None:
    cells, raw = simulated(2)
    letters = np.array(list("ACGT"))
    barcodes = [
        "".join(letters[[(i >> 2 * k) & 3 for k in range(16)]]) + "-1" for i in range(raw.n_obs)
    ]
    filtered = matrix_folder(cells, barcodes[: cells.n_obs], tmp_path / "filtered")
    everything = matrix_folder(raw, barcodes, tmp_path / "raw")
    mdata = totalvi.read(filtered=filtered, raw=everything)
    expected = totalvi.ambient_profile(raw, cells)
    pd.testing.assert_frame_equal(mdata.uns["ambient"], expected)
    mdata.write(tmp_path / "cells.h5mu")
    again = totalvi.read(tmp_path / "cells.h5mu")
    assert again.uns["ambient"]["log_mean"].tolist() == expected["log_mean"].tolist()
    with pytest.raises(DataError, match="swapped"):
        totalvi.read(filtered=everything, raw=filtered)


def test_pooled_estimates_are_those_of_all_droplets() -> None:
    rng = np.random.default_rng(0)
    lanes = [
        rng.poisson(np.exp(rng.normal(np.log([2.0, 30.0]), sd, (n, 2))))
        for sd, n in ((0.3, 400), (0.6, 900))
    ]
    each = [estimate_ambient(lane) for lane in lanes]
    pooled = pooled_ambient(
        np.array([one.log_mean for one in each]),
        np.array([one.log_sd for one in each]),
        np.array([[len(lane)] * 2 for lane in lanes]),
    )
    for found, expected in zip(pooled, estimate_ambient(np.concatenate(lanes)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0.01)


def in_lanes(seed: int) -> mudata.MuData:
    """Cells of two lanes, with what the empty droplets of each hold."""
    cells, raw = simulated(seed, n_batches=2)
    cells.uns["ambient"] = totalvi.ambient_profile(raw, cells, batch_key="batch")
    return cells


def test_droplets_of_lanes_that_are_joined_are_pooled() -> None:
    data = {"A": in_lanes(1), "B": in_lanes(2)}
    apart = totalvi.concat(data, batch_key="lane", sub_batch_key="batch").uns["ambient"]
    assert sorted(apart["batch"].unique()) == ["A:batch_0", "A:batch_1", "B:batch_0", "B:batch_1"]
    joined = totalvi.concat(data, batch_key="set")
    table = joined.uns["ambient"].set_index(["batch", "protein"])
    names = dict(joined.uns["concat"]["antibodies"][["original", "harmonised"]].to_numpy())
    assert table.index.is_unique
    for name, each in data.items():
        lanes = each.uns["ambient"]
        for protein, rows in lanes.groupby("protein"):
            pooled = table.loc[(name, names[protein])]
            assert rows["log_mean"].min() <= pooled["log_mean"] <= rows["log_mean"].max()
            assert pooled["n_droplets"] == rows["n_droplets"].sum()
            assert pooled["standard_error"] < rows["standard_error"].max()
    model = totalvi.Model(joined, batch_key="set", n_hidden=8, n_latent=2)
    assert (model.module.background_anchor[2] > 0).all()


GOOD = pd.DataFrame(
    {
        "batch": "",
        "protein": ["protein_0", "protein_1"],
        "log_mean": [0.5, 1.5],
        "log_sd": 0.4,
        "standard_error": 0.1,
        "n_droplets": 200,
    }
)
OF_OTHERS = {
    "array": (np.zeros(3), "but a ndarray"),
    "text": ("soup", "but a str"),
    "mapping": ({"log_mean": 1.0}, "but a dict"),
    "other columns": (pd.DataFrame({"gene": ["a"], "soup": [0.1]}), 'without "batch", "protein"'),
}
DAMAGED = {
    "no rows": (GOOD[:0], "without rows"),
    "NaN": (GOOD.assign(log_mean=np.nan), '"log_mean" has values that cannot be'),
    "text for numbers": (GOOD.assign(log_sd="wide"), '"log_sd" has values'),
    "negative": (GOOD.assign(standard_error=-1.0), '"standard_error" has values'),
    "no droplets": (GOOD.assign(n_droplets=0), '"n_droplets" has values'),
    "repeated": (GOOD.assign(protein="protein_0"), '"protein_0" has several rows'),
}


@pytest.mark.parametrize("case", [*OF_OTHERS, *DAMAGED])
def test_a_table_that_is_none_is_one_sentence(case: str, tmp_path: Path) -> None:
    wrong, said = (OF_OTHERS | DAMAGED)[case]
    cells, _ = simulated(0)
    cells.uns["ambient"] = wrong
    with pytest.raises(DataError) as caught:
        totalvi.Model(cells, n_hidden=8)
    message = str(caught.value)
    assert message.startswith('uns["ambient"] is not a table of totalvi.ambient_profile (')
    assert said in message
    assert "\n" not in message
    assert totalvi.Model(cells, n_hidden=8, empty_droplets=False) is not None
    if case in DAMAGED:
        with pytest.raises(DataError, match=r"^empty_droplets is not a table of"):
            totalvi.Model(cells, n_hidden=8, empty_droplets=wrong)


@pytest.mark.parametrize("case", OF_OTHERS)
def test_what_others_call_ambient_is_left_out_like_their_other_entries(
    case: str, tmp_path: Path
) -> None:
    cells, _ = simulated(0)
    cells.uns["ambient"], _ = OF_OTHERS[case]
    cells.write(tmp_path / "cells.h5mu")
    read = totalvi.read(tmp_path / "cells.h5mu")
    assert "ambient" not in totalvi.concat({"A": read, "B": cells}, batch_key="set").uns
    store = convert_counts(tmp_path / "cells.h5mu", tmp_path / "cells.zarr")
    assert "ambient" not in totalvi.read(store).uns


def test_joined_data_sets_keep_their_droplets() -> None:
    data = {}
    for name, seed in (("A", 1), ("B", 2)):
        cells, raw = simulated(seed)
        cells.obs = cells.obs.drop(columns="batch")
        cells.uns["ambient"] = totalvi.ambient_profile(raw)
        cells["prot"].var_names = [f"CD{i}_TotalSeqB" for i in range(1, 13)]
        cells.uns["ambient"]["protein"] = cells["prot"].var_names.to_numpy()
        data[name] = cells
    joined = totalvi.concat(data)
    table = joined.uns["ambient"]
    assert sorted(table["batch"].unique()) == ["A", "B"]
    assert set(table["protein"]) == set(joined["prot"].var_names)
    own = table[table["batch"] == "B"]["log_mean"].to_numpy()
    np.testing.assert_array_equal(own, data["B"].uns["ambient"]["log_mean"])
    model = totalvi.Model(joined, batch_key="batch", n_hidden=8, n_latent=2)
    assert (model.module.background_anchor[2] > 0).all()
