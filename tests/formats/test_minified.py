"""A minified reference is small, answers as the whole one, and a damaged one is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from mudata import MuData
from safetensors import safe_open
from safetensors.torch import load, save

import totalvi
from counts import SMALL, annotated
from totalvi.data.minified_cells import is_minified
from totalvi.errors import DataError, FormatError, OutputError
from totalvi.formats import minified as minified_format
from totalvi.formats.minified import read_card, read_minified

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

OPTIONS: dict[str, dict[str, Any]] = {
    "one_batch": {},
    "everything": {
        "batch_key": "batch",
        "panel_key": "lane",
        "labels_key": "sex",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
        "protein_dispersion": "protein-label",
        "library": "latent",
    },
    "size_factor": {"size_factor_key": "size_factor", "latent_distribution": "ln"},
}


def cells() -> MuData:
    mdata = annotated(200)
    mdata.obs["type"] = pd.Categorical(np.where(np.arange(200) % 7 == 0, None, mdata.obs["lane"]))
    mdata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(200, 2)) * 5
    return mdata


@pytest.fixture(scope="module", params=list(OPTIONS))
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[totalvi.Model, totalvi.Model]:
    """A model with its data, and the minified reference of it."""
    mdata = cells()[:150].copy()
    model = totalvi.Model(mdata, **OPTIONS[request.param], **SMALL)
    model.train(max_epochs=2, accelerator="cpu")
    model.mdata = mdata  # kept alive, as its place on the map is
    path = tmp_path_factory.mktemp("minified") / "reference.totalvi"
    model.save(path, minified=True)
    return model, totalvi.Model.load(path)


@pytest.fixture
def path(both: tuple[totalvi.Model, totalvi.Model], tmp_path: Path) -> Path:
    return both[0].save(tmp_path / "reference.totalvi", minified=True)


def test_queries_about_new_cells_have_the_same_answers(
    both: tuple[totalvi.Model, totalvi.Model],
) -> None:
    new = cells()[150:].copy()
    for data in (new, new["rna"].copy()):
        if data is not new:
            data.obs = new.obs
        queries = [model.map_query(data) for model in both]
        pairs = zip(both, queries, strict=True)
        labels, unlike, places, latent = [], [], [], []
        for model, query in pairs:
            labels.append(model.transfer_labels(query, "type").probabilities)
            unlike.append(model.get_unlikeness(query))
            places.append(model.get_map_coordinates(query))
            latent.append(query.get_latent_representation(mc_samples=20))
        pd.testing.assert_frame_equal(*labels, check_exact=True)
        pd.testing.assert_frame_equal(*unlike, check_exact=True)
        pd.testing.assert_frame_equal(*places, rtol=1e-9)
        np.testing.assert_array_equal(*latent)
    reliable = [
        model.get_query_reliability(query, n_samples=20)
        for model, query in zip(both, queries, strict=True)
    ]
    pd.testing.assert_frame_equal(*reliable, check_exact=True)
    imputed = [query.impute_proteins(calibrated=False, n_samples=20).mean for query in queries]
    pd.testing.assert_frame_equal(*imputed, check_exact=True)


def test_another_seed_calibrates_on_the_kept_cells(
    both: tuple[totalvi.Model, totalvi.Model],
) -> None:
    query = both[1].map_query(cells()[150:].copy())
    unlike = both[1].get_unlikeness(query, seed=3)
    assert unlike["p_value"].between(0, 1).all()
    assert len(both[1].transfer_labels(query, "lane", seed=3).labels) == 50


def test_labels_of_cells_without_counts_are_told(both: tuple[totalvi.Model, totalvi.Model]) -> None:
    kept = both[1]._training_data().cells_with_counts()
    labels = np.array(["a", "b"], dtype=object)[np.arange(150) % 2]
    labels[kept] = None
    query = both[1].map_query(cells()[150:].copy())
    with pytest.raises(DataError, match="Only 0 of the labelled cells keep their counts"):
        both[1].transfer_labels(query, labels)


def test_files_of_other_programs_are_neither_replaced_nor_called_damaged(
    both: tuple[totalvi.Model, totalvi.Model], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"format": "pt"})
    before = path.read_bytes()
    with pytest.raises(OutputError, match="is not a minified reference"):
        both[0].save(path, minified=True, overwrite=True)
    assert path.read_bytes() == before
    with pytest.raises(FormatError, match="is a file, but not a minified reference"):
        totalvi.Model.load(path)


def test_queries_about_its_own_cells_given_z_answer_closely(
    both: tuple[totalvi.Model, totalvi.Model],
) -> None:
    whole, small = (model.get_latent_representation(return_dist=True) for model in both)
    assert np.abs(small.mean - whole.mean).max() <= 2.0**-12 + 1e-5
    np.testing.assert_allclose(small.variance, whole.variance, rtol=1.1e-3)
    sizes = [model.get_latent_library_size() for model in both]
    np.testing.assert_allclose(*sizes, rtol=1e-3)
    of_both = [model.get_normalized_expression(given_counts=False, n_samples=10) for model in both]
    for one, other in zip(*of_both, strict=True):
        pd.testing.assert_frame_equal(one, other, rtol=5e-3, atol=1e-3)
    assert (both[1].split.train == np.sort(both[0].split.train)).all()
    np.testing.assert_array_equal(both[0].calibration_cells, both[1].calibration_cells)


@pytest.mark.parametrize(
    "ask",
    [
        lambda model: model.get_normalized_expression(),
        lambda model: model.get_elbo(),
        lambda model: model.get_protein_foreground_probability(),
        lambda model: model.find_doublets(),
        lambda model: model.differential_expression(groupby="lane"),
        lambda model: model.get_reconstruction_error(),
        lambda model: model.train(max_epochs=1),
    ],
)
def test_queries_that_need_counts_say_so_in_one_sentence(
    both: tuple[totalvi.Model, totalvi.Model], ask: Callable[[totalvi.Model], Any]
) -> None:
    with pytest.raises(DataError, match=r"^This asks for the counts .*Model\.load\(path, data\)"):
        ask(both[1])


def test_with_its_data_it_is_the_whole_model(
    both: tuple[totalvi.Model, totalvi.Model], path: Path
) -> None:
    again = totalvi.Model.load(path, both[0].mdata)
    np.testing.assert_array_equal(again.get_elbo(), both[0].get_elbo())


def test_it_can_be_written_again_unchanged(
    both: tuple[totalvi.Model, totalvi.Model], tmp_path: Path
) -> None:
    again = totalvi.Model.load(both[1].save(tmp_path / "again.totalvi", minified=True))
    for one, other in zip(
        again.get_latent_representation(return_dist=True),
        both[1].get_latent_representation(return_dist=True),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_what_is_kept(both: tuple[totalvi.Model, totalvi.Model], path: Path) -> None:
    data = both[1]._training_data()
    obs, given = data.annotation.obs(), both[0].mdata.obs
    assert data.cell_names.equals(both[0]._training_data().cell_names)
    for column in ("lane", "sex", "type", "batch"):
        known = given[column].notna().to_numpy()
        assert (obs[column].notna().to_numpy() == known).all()
        assert (obs[column][known].astype(str) == given[column][known].astype(str)).all()
    assert "age" not in obs
    assert set(read_card(path)["card"]["obs_left_out"]) >= {"age", "size_factor"}
    np.testing.assert_allclose(data.library_size, both[0]._training_data().library_size, rtol=1e-5)
    width = np.ptp(both[0].mdata.obsm["X_umap"], axis=0)
    layout = data.annotation.layout()
    assert layout is not None
    assert (np.abs(layout - both[0].mdata.obsm["X_umap"]) <= width / 8000).all()
    # counts of no other cells than those that calibrate
    assert len(data.cells_with_counts()) < data.n_cells
    with pytest.raises(DataError, match="does not keep"):
        data.rna.read()


def test_size_of_a_cell(tmp_path: Path) -> None:
    """At most 60 bytes of each cell more, in a reference with the default number of dimensions."""
    mdata = totalvi.simulate(n_cells=3000, n_genes=30, n_proteins=6, n_batches=2, seed=1)
    sizes = []
    for n_cells in (1000, 3000):
        some = mdata[:n_cells].copy()
        some.obsm["X_umap"] = np.random.default_rng(0).normal(size=(n_cells, 2))
        model = totalvi.Model(some, batch_key="batch", n_hidden=8)
        model.train(max_epochs=1, train_size=0.99, accelerator="cpu")
        kept = 100  # cells with counts in both, as the fit holds out few
        path = model.save(tmp_path / f"{n_cells}.totalvi", minified=True)
        card = read_card(path)["card"]
        with safe_open(path, "numpy") as file:  # regression has at most 10,000 cells
            names = [name for name in file.keys() if name.startswith("predictors.")]  # noqa: SIM118
            besides = sum(file.get_tensor(name).nbytes for name in names)
        besides += 100 * max(card["cells_with_counts"] - kept, 0)
        sizes.append(path.stat().st_size - besides)
    assert (sizes[1] - sizes[0]) / 2000 <= 60


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the description and the tensors of a reference, with a checksum that fits."""
    tensors, description = minified_format._read(path)
    change(description, tensors)
    description["tensors"] = minified_format.declared(tensors)
    path.write_bytes(minified_format._with_checksum(tensors, json.dumps(description)))


def test_a_damaged_file_is_one_sentence(path: Path) -> None:
    whole = path.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    rng = np.random.default_rng(0)
    places = [*rng.integers(30, header, 15), *rng.integers(header, len(whole), 15)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 0x15
        path.write_bytes(damaged)
        with pytest.raises(FormatError) as caught:
            totalvi.Model.load(path)
        assert str(caught.value).count("\n") == 0
        assert str(path) in str(caught.value)
    for length in (4, 30, header, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            totalvi.Model.load(path)


def _set_cells(name: str, value: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(description: dict[str, Any], _tensors: dict[str, Any]) -> None:
        description["cells"][name] = value

    return change


def _without(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(description: dict[str, Any], tensors: dict[str, Any]) -> None:
        del description["cells"]["columns"][name]
        del tensors[f"cells.{name}"]

    return change


def _with_offset(name: str, offset: int) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(description: dict[str, Any], _tensors: dict[str, Any]) -> None:
        description["cells"]["columns"][name]["offset"] += offset

    return change


def _with_shape(name: str, shape: list[int]) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(description: dict[str, Any], _tensors: dict[str, Any]) -> None:
        description["cells"]["columns"][name]["shape"] = shape

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set_cells("n_cells", 10**12),
        _set_cells("n_cells", -1),
        _set_cells("n_cells", "many"),
        _set_cells("n_kept", 149),
        _set_cells("columns", []),
        _without("mean"),
        _without("names"),
        _without("kept_rna_gap"),
        _with_offset("batch", 7),
        _with_offset("panel", -9),
        _with_offset("kept", 10**6),
        _with_offset("kept_rna_gap", 50),
        _with_offset("kept_rna_length", 3),
        _with_offset("kept_protein", -(10**6)),
        _with_offset("log_variance", 10**9),
        _with_offset("batch", -1),
        _with_shape("names", [10**12]),
        _with_shape("kept_protein", [10**6, 10**6]),
        _with_shape("mean", [-1, 4]),
    ],
)
def test_a_hostile_file_is_one_sentence(
    path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]
) -> None:
    rewritten(path, change)
    with pytest.raises(FormatError) as caught:
        totalvi.Model.load(path)
    assert str(caught.value).count("\n") == 0


def test_a_later_format_asks_for_an_update(path: Path) -> None:
    rewritten(path, lambda description, _: description.update(format_version=2))
    with pytest.raises(FormatError, match="update totalvi"):
        totalvi.Model.load(path)


def test_other_files_are_not_references(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"not safetensors")
    assert not is_minified(other)
    with pytest.raises(FormatError, match="not a minified reference"):
        read_minified(other)
    other.write_bytes(save({"a": load(save({"a": safetensors.torch.torch.zeros(2)}))["a"]}))
    with pytest.raises(FormatError):
        totalvi.Model.load(other)
    with pytest.raises(FormatError):
        read_card(tmp_path)


def test_only_references_are_replaced(
    both: tuple[totalvi.Model, totalvi.Model], path: Path
) -> None:
    with pytest.raises(OutputError, match="exists"):
        both[0].save(path, minified=True)
    both[0].save(path, minified=True, overwrite=True)
    foreign = path.with_name("notes.txt")
    foreign.write_text("notes")
    with pytest.raises(OutputError, match="not a minified reference"):
        both[0].save(foreign, minified=True, overwrite=True)
    assert foreign.read_text() == "notes"


def test_only_references_with_data_are_minified(
    both: tuple[totalvi.Model, totalvi.Model], tmp_path: Path
) -> None:
    query = both[0].map_query(cells()[150:].copy())
    with pytest.raises(DataError, match="only references are minified"):
        query.save(tmp_path / "query", minified=True)
    both[0].save(tmp_path / "model")
    with pytest.raises(DataError, match="loaded without data"):
        totalvi.Model.load(tmp_path / "model").save(tmp_path / "reference", minified=True)
    others = totalvi.Model.load(tmp_path / "model", both[0].mdata[::-1].copy())
    with pytest.raises(DataError, match="not the cells that the model was fitted to"):
        others.save(tmp_path / "reference", minified=True)
    assert not (tmp_path / "reference").exists()
