"""New cells on a fitted model: what moves, what does not, and what is said of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mudata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.cli.main import execute
from totalvi.data.counts import CountsInMemory
from totalvi.errors import DataError, DataWarning, OutputError
from totalvi.fit.loop import evaluate
from totalvi.mapping.reference_neighbours import (
    Calibration,
    Neighbours,
    calibration_error,
    label_probabilities,
    tail_probability,
)
from totalvi.mapping.surgery import only_new_rows, reference_state
from totalvi.run.map_cells import map_files

pytestmark = pytest.mark.filterwarnings("ignore:From 0.4:FutureWarning")

OPTIONS = {
    "one_batch": {},
    "everything": {
        "batch_key": "batch",
        "categorical_covariate_keys": ["sex"],
        "continuous_covariate_keys": ["age"],
        "gene_dispersion": "gene-batch",
        "protein_dispersion": "protein-batch",
        "library": "latent",
        "protein_efficiency": True,
        "n_layers_encoder": 2,
        "n_layers_decoder": 2,
    },
}


@pytest.fixture(scope="module", params=list(OPTIONS))
def reference(request: pytest.FixtureRequest) -> totalvi.Model:
    model = totalvi.Model(annotated()[:80].copy(), **OPTIONS[request.param], **SMALL)
    model.train(max_epochs=2, accelerator="cpu")
    return model


def test_surgery_moves_only_the_new_batch(reference: totalvi.Model, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in reference.module.state_dict().items()}
    cells = annotated()[80:].copy()
    plain = reference.map_query(cells)
    query = reference.map_query(cells, train=True, max_epochs=2, accelerator="cpu")
    kept = reference_state(query.module, query._mapping)
    assert set(kept) == set(before) - {"protein_mask"}
    assert all(torch.equal(before[name], value) for name, value in kept.items())
    after = reference.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    moved = np.abs(query.get_latent_representation() - plain.get_latent_representation()).max()
    assert moved > 0
    still = [
        {name for name, parameter in model.module.named_parameters() if not parameter.requires_grad}
        for model in (query, reference)
    ]
    assert still[0] == still[1]
    query.save(tmp_path / "query.totalvi")
    loaded = totalvi.Model.load(tmp_path / "query.totalvi", cells)
    np.testing.assert_array_equal(
        loaded.get_latent_representation(), query.get_latent_representation()
    )
    assert loaded.schema == query.schema


def test_without_surgery_a_query_is_encoded_as_its_reference_batch(
    reference: totalvi.Model,
) -> None:
    cells = annotated()[80:].copy()
    name = reference.schema.batch_names[0]
    query = reference.map_query(cells, reference_batch=name)
    if reference.schema.columns.batch_key is not None:
        cells.obs["batch"] = name
    expected = reference.get_latent_representation(cells)
    np.testing.assert_allclose(query.get_latent_representation(), expected, atol=1e-6)


def test_rna_alone_and_missing_genes(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    rna = cells["rna"][:, 3:].copy()
    rna.obs = cells.obs
    with pytest.warns(UserWarning, match="lacks 3 of the 30 genes"):
        query = reference.map_query(rna)
    _, protein = query.get_normalized_expression(
        transform_batch=reference.schema.batch_names[0], unmeasured="impute"
    )
    assert protein.shape == (40, 6)
    assert np.isfinite(protein.to_numpy()).all()
    with pytest.warns(DataWarning, match="5 more are NaN in 40 of 40"):
        counts = query.get_normalized_expression(n_samples=1)[1]
    assert np.isfinite(query.get_elbo())
    assert counts.shape == (40, 6)
    assert counts.isna().all(axis=None)


def test_a_strange_protein_is_left_out_by_name(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    cells["prot"].var_names = ["strange", *cells["prot"].var_names[1:]]
    with pytest.warns(UserWarning, match='"strange"'):
        query = reference.map_query(cells)
    assert not query.schema.panel_measured[-1][0]


def test_refusals(reference: totalvi.Model) -> None:
    cells = annotated()[80:].copy()
    with pytest.raises(DataError, match="genes"):
        reference.map_query(cells["rna"][:, :5].copy())
    with pytest.raises(ValueError, match="no batch of the reference"):
        reference.map_query(cells, reference_batch="nowhere")
    proteins_alone = MuData({"prot": cells["prot"].copy()})
    proteins_alone.obs = cells.obs.copy()
    with pytest.raises(DataError, match="no RNA, by which it is mapped"):
        reference.map_query(proteins_alone)
    with pytest.raises(ValueError, match="train=True"):
        reference.map_query(cells, lr=0.1)
    with pytest.raises(ValueError, match="map_query returned"):
        reference.get_unlikeness(reference)
    if reference.schema.columns.categorical_covariate_keys:
        cells.obs["sex"] = "x"
        with pytest.raises(DataError, match="train=True"):
            reference.map_query(cells)
        query = reference.map_query(cells, train=True, max_epochs=1, accelerator="cpu")
        assert query.schema.covariate_categories[0][-1] == "x"


def test_labels_and_unlikeness_of_the_same_kind_of_cells(reference: totalvi.Model) -> None:
    query = reference.map_query(annotated()[80:].copy())
    transfer = reference.transfer_labels(query, "cell_type")
    np.testing.assert_allclose(transfer.probabilities.sum(axis=1), 1, atol=1e-6)
    assert transfer.labels.isin(["type_0", "type_1", "type_2"]).all()
    assert reference.get_unlikeness(query)["p_value"].between(0, 1).all()


def test_votes_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 9, (5, 4))
    overlap = rng.normal(size=(5, 4)).astype(np.float32)
    code = rng.integers(0, 3, 9)
    found = label_probabilities(Neighbours(cells, overlap), code, 3, Calibration(2.0, 0.1))
    frequency = np.bincount(code, minlength=3) / 9
    for i in range(5):
        weight = np.exp(overlap[i] / 2.0)
        expected = [weight[code[cells[i]] == label].sum() / weight.sum() for label in range(3)]
        np.testing.assert_allclose(found[i], 0.9 * np.array(expected) + 0.1 * frequency, rtol=1e-5)


def test_p_values_are_uniform_and_calibration_is_measured() -> None:
    rng = np.random.default_rng(0)
    p = tail_probability(rng.exponential(size=4000), rng.exponential(size=4000))
    assert abs((p < 0.1).mean() - 0.1) < 0.02
    chance = rng.uniform(0.5, 1, 5000)
    truth = (rng.random(5000) > chance).astype(int)
    both = np.stack([chance, 1 - chance], axis=1)
    assert calibration_error(both, truth) < 0.04
    assert calibration_error(np.stack([chance**0.2, 1 - chance**0.2], axis=1), truth) > 0.1


@pytest.mark.parametrize(("n_cells", "n_bins"), [(149, 1), (150, 15), (151, 15)])
def test_calibration_of_few_cells_is_that_of_one_bin(n_cells: int, n_bins: int) -> None:
    rng = np.random.default_rng(0)
    chance = rng.uniform(0.5, 1, n_cells)
    right = rng.random(n_cells) < chance
    found = calibration_error(np.stack([chance, 1 - chance], axis=1), (~right).astype(int))
    bins = np.array_split(np.argsort(chance), n_bins)
    gaps = [len(b) * abs(chance[b].mean() - right[b].mean()) for b in bins]
    assert found == pytest.approx(sum(gaps) / n_cells)


def test_a_query_of_another_model_is_refused(reference: totalvi.Model, tmp_path: Path) -> None:
    """One with the same batches and sizes, and this one as it was before a further fit."""
    cells = annotated()[80:].copy()
    query = reference.map_query(cells)
    loaded = totalvi.Model.load(reference.save(tmp_path / "reference"), annotated()[:80].copy())
    assert len(loaded.get_unlikeness(query)) == 40
    query.save(tmp_path / "query")
    assert len(reference.get_unlikeness(totalvi.Model.load(tmp_path / "query", cells))) == 40
    loaded.train(max_epochs=1, accelerator="cpu")
    for question in (loaded.get_unlikeness, loaded.get_query_reliability):
        with pytest.raises(ValueError, match="mapped on another model"):
            question(query)
    with pytest.raises(ValueError, match="mapped on another model"):
        loaded.transfer_labels(query, "cell_type")


def test_proteins_of_a_query_are_trusted_as_in_the_reference(reference: totalvi.Model) -> None:
    query = reference.map_query(_rna_of(annotated()[80:].copy()), batch_key=None)
    with pytest.raises(DataError, match="get_query_reliability"):
        query.get_imputation_reliability(n_samples=2)
    table = reference.get_query_reliability(query, n_samples=5)
    panels = query.schema.batch_names[len(reference.schema.batch_names) :]
    proteins = reference.schema.protein_names
    assert list(table.index) == [(panel, protein) for panel in panels for protein in proteins]
    held_out = [*reference.split.validation, *reference.split.test]
    assert (table["n_cells"] == len(held_out)).all()
    one = reference.get_query_reliability(query, n_samples=5, protein_list=[proteins[1]])
    assert list(one.index) == [(panel, proteins[1]) for panel in panels]
    whole = reference.map_query(annotated()[80:].copy())
    with pytest.raises(ValueError, match="lacks none"):
        reference.get_query_reliability(whole)


def test_counts_that_the_query_lacks_do_not_help_it(reference: totalvi.Model) -> None:
    """Other counts of a protein that is hidden change what it is compared with, only."""
    query = reference.map_query(_rna_of(annotated()[80:].copy()))
    before = reference.get_query_reliability(query, n_samples=5)
    data, more = reference._data, np.array([1000, 1, 1, 1, 1, 1], dtype=np.float32)
    reference._data = replace(data, protein=CountsInMemory(data.protein.read() * more))
    after = reference.get_query_reliability(query, n_samples=5)
    reference._data = data
    changed = after.index.get_level_values("protein") == reference.schema.protein_names[0]
    model = before["model_pearson"] == after["model_pearson"]  # others are fitted to these counts
    assert model[~changed].all()
    assert not model[changed].any()


@pytest.mark.parametrize("name", ["crispr", "protospacer_calls", "adt_raw", "Protein"])
def test_what_is_beside_the_rna(reference: totalvi.Model, name: str) -> None:
    """Guides of a CRISPR screen are left out with a note, and what may be proteins is asked about."""
    cells = annotated()[80:].copy()
    other = cells["prot"].copy()
    other.var_names = [f"guide_{i}" for i in range(other.n_vars)]
    query = MuData({"rna": cells["rna"].copy(), name: other})
    query.obs = cells.obs
    if name in ("adt_raw", "Protein"):
        with pytest.raises(DataError, match="protein_modality"):
            reference.map_query(query)
        return
    with pytest.warns(UserWarning, match=f'The query has "{name}" beside its RNA'):
        mapped = reference.map_query(query)
    np.testing.assert_array_equal(
        mapped.get_latent_representation(),
        reference.map_query(_rna_of(cells)).get_latent_representation(),
    )
    both = cells["rna"].copy()
    both.var["feature_types"] = ["CRISPR Guide Capture"] * 2 + ["Gene Expression"] * 28
    both.obs = cells.obs
    with pytest.warns(UserWarning, match='"crispr_guide_capture" beside its RNA'):
        reference.map_query(both)


def _rna_of(cells: MuData) -> AnnData:
    rna = cells["rna"].copy()
    rna.obs = cells.obs
    return rna


def test_a_mapped_fit_is_validated_as_it_is_asked(reference: totalvi.Model) -> None:
    """With one sample of the background, though a frozen reference stays in evaluation mode."""
    query = reference.map_query(annotated()[80:].copy())
    cells, seed = np.arange(40), np.random.SeedSequence(0)
    expected = evaluate(query.module, query._data, cells, seed)
    with only_new_rows(query.module, query._mapping):
        found = evaluate(query.module, query._data, cells, seed)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its cells beside it, and a query of RNA alone."""
    folder = tmp_path_factory.mktemp("files")
    mdata = annotated()
    model = totalvi.Model(mdata[:80].copy(), batch_key="batch", **SMALL)
    model.train(max_epochs=1, accelerator="cpu")
    model.save(folder / "model.totalvi")
    mdata[:80].copy().write(folder / "results.h5mu")
    _rna_of(mdata[80:].copy()).write(folder / "query.h5ad")
    return folder


def test_command(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    query = str(files / "query.h5ad")
    command = ["map", str(files), query, "-o", str(tmp_path / "out"), "--labels", "cell_type"]
    assert execute(command) == 0, capsys.readouterr().err
    names = {path.name for path in (tmp_path / "out" / "tables").iterdir()}
    parts = ("proteins", "lower", "upper", "foreground_probability")
    tables = {"cells.csv.gz", "label_probabilities.csv.gz", "reliability.csv", "levels.csv"}
    assert names == tables | {f"imputed_{part}.csv.gz" for part in parts}
    foreground = pd.read_csv(
        tmp_path / "out" / "tables" / "imputed_foreground_probability.csv.gz", index_col=0
    )
    cells = mudata.read_h5mu(files / "results.h5mu")
    query_model = totalvi.Model.load(files / "model.totalvi", cells).map_query(
        totalvi.read(files / "query.h5ad")
    )
    expected = query_model.get_protein_foreground_probability(
        unmeasured="impute", given_counts=False, n_samples=25
    )
    pd.testing.assert_frame_equal(
        foreground, expected, rtol=1e-4, check_names=False, check_dtype=False
    )
    printed = capsys.readouterr().out
    assert "40 cells" in printed
    assert "6 of 6 proteins cannot be trusted" in printed
    assert "imputed counts are as the reference measured them" in printed
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert set(record["input_sha256"]) == {"model_path", "query_path", "reference"}
    command[4] = str(tmp_path / "c")
    bare = shutil.copytree(files / "model.totalvi", tmp_path / "model.totalvi")
    assert execute(["map", str(bare), *command[2:]]) == 2
    assert "--reference" in capsys.readouterr().err
    assert execute(["map", str(tmp_path / "none"), "x.h5ad", "-o", str(tmp_path / "b")]) == 2


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            ["--labels", "cell_typ"],
            "--labels cell_typ is no column of the reference's obs; did you",
        ),
        (
            ["--reference-batch", "bach_0"],
            "--reference-batch bach_0 is no batch of the reference",
        ),
        (["--batch", "donor"], "donor"),
        (["--labels", "nobody"], "ewer than 10 reference cells"),
    ],
)
def test_names_that_do_not_exist_are_one_sentence(
    files: Path, tmp_path: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    place = shutil.copytree(files, tmp_path / "files")
    mdata = mudata.read_h5mu(place / "results.h5mu")
    mdata.obs["nobody"] = pd.Series(["x"] * 4 + [None] * 76, mdata.obs_names, dtype=object)
    mdata.write(place / "results.h5mu")
    assert execute(["map", str(place), str(place / "query.h5ad"), "-o", str(output), *given]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == printed.count("error:") == 1
    assert not output.exists()


def test_an_interrupted_map_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (files, files / "query.h5ad")
    whole = map_files(*arguments, tmp_path / "whole", train=True)
    with monkeypatch.context() as patch:
        patch.setattr(totalvi.Model, "get_unlikeness", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            map_files(*arguments, tmp_path / "out", train=True)
    kept = tmp_path / "out.checkpoint"
    assert kept.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputError, match="interrupted"):
        map_files(*arguments, tmp_path / "out", train=True)
    with monkeypatch.context() as patch:
        patch.setattr("totalvi.fit.loop.Fit.epoch", _interrupted)  # all steps are done
        resumed = map_files(*arguments, tmp_path / "out", train=True, resume=True)
    assert not kept.exists()
    cells = [
        pd.read_csv(tmp_path / name / "tables" / "cells.csv.gz", index_col=0)
        for name in ("whole", "out")
    ]
    pd.testing.assert_frame_equal(*cells)
    assert whole["input_sha256"] == resumed["input_sha256"]
    again = map_files(*arguments, tmp_path / "out", train=True, resume=True)
    assert again["finished"] == resumed["finished"]


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_map_on_a_refitted_model_is_made_anew(files: Path, tmp_path: Path) -> None:
    """The model's folder is all that differs: nothing lies beside it."""
    place, query = tmp_path / "model.totalvi", files / "query.h5ad"
    shutil.copytree(files / "model.totalvi", place)
    first = map_files(place, query, tmp_path / "out")
    again = map_files(place, query, tmp_path / "out", resume=True)
    assert again["finished"] == first["finished"]
    refitted = totalvi.Model.load(place, totalvi.read(files / "results.h5mu"))
    refitted.train(max_epochs=1, accelerator="cpu")
    refitted.save(place, overwrite=True)
    with pytest.raises(OutputError, match="holds a run with another model_path"):
        map_files(place, query, tmp_path / "out", resume=True)
    again = map_files(place, query, tmp_path / "out", resume=True, overwrite=True)
    assert again["input_sha256"]["query_path"] == first["input_sha256"]["query_path"]
    assert again["input_sha256"]["model_path"] != first["input_sha256"]["model_path"]


def test_a_map_leaves_the_checkpoint_of_a_live_one(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, output = (files, files / "query.h5ad"), tmp_path / "out"
    map_files(*arguments, output, train=True)
    kept, seen = tmp_path / "out.checkpoint", []

    def meanwhile(*_: object, **__: object) -> None:
        monkeypatch.undo()
        before = kept.read_bytes()
        for choice in (
            {"overwrite": True},
            {"resume": True},
        ):  # the latter has results that are done
            with pytest.raises(OutputError, match="being written by another process"):
                map_files(*arguments, output, train=True, **choice)
        seen.append(kept.read_bytes() == before)
        raise KeyboardInterrupt

    monkeypatch.setattr(totalvi.Model, "get_unlikeness", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        map_files(*arguments, output, train=True, overwrite=True)
    assert seen == [True]
