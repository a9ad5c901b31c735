"""The sample of each cell by its hashtags: against the truth, and through a run."""

import json
from pathlib import Path
from typing import NamedTuple

import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.io import read_elem
from mudata import MuData
from scipy import sparse

import totalvi
from totalvi.cli.main import execute
from totalvi.errors import IncompleteError
from totalvi.report.build import build_report
from totalvi.run.hashtag_samples import (
    HashtagCalls,
    call_hashtags,
    count_calls,
    hashtags_of_run,
)
from totalvi.run.named_cells import samples_and_clusters, samples_of
from totalvi.run.run import run


class Tagged(NamedTuple):
    """Counts of hashtags, which cells carry which, and what a call should be."""

    counts: np.ndarray
    carried: np.ndarray
    truth: np.ndarray

    def called(self, group: np.ndarray | None = None) -> HashtagCalls:
        group = np.zeros(len(self.counts)) if group is None else group
        return call_hashtags(self.counts, NAMES[: self.counts.shape[1]], group)


NAMES = [f"donor {letter}" for letter in "ABCDEFGH"]


def tagged(
    n_cells: int = 2000, n_tags: int = 4, *, fold: float = 20.0, failed: int = 0, seed: int = 0
) -> Tagged:
    """Simulate hashtags: 8 % doublets, 3 % without a tag; the first tags may have failed."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(3, n_cells, p=[0.89, 0.08, 0.03])
    first, second = rng.integers(n_tags, size=(2, n_cells))
    carried = np.zeros((n_cells, n_tags), dtype=bool)
    carried[np.arange(n_cells), first] = kind != 2
    carried[np.arange(n_cells), second] |= kind == 1
    without = 10 * np.exp(rng.normal(0, 0.5, n_tags))
    with_tag = without * np.where(np.arange(n_tags) < failed, 1.0, fold)
    mean = np.where(carried, with_tag, without)
    counts = rng.poisson(mean * rng.gamma(3, 1 / 3, mean.shape))
    n_carried = carried.sum(axis=1)
    names = np.array(NAMES[:n_tags])[carried.argmax(axis=1)]
    truth = np.where(n_carried == 0, "none", np.where(n_carried == 2, "doublet", names))
    return Tagged(counts, carried, truth)


@pytest.mark.parametrize("n_tags", [1, 2, 4, 8])
@pytest.mark.parametrize("fold", [8.0, 30.0])
def test_calls_are_right_as_often_as_they_say(n_tags: int, fold: float) -> None:
    data = tagged(n_tags=n_tags, fold=fold)
    cells, failed, _ = data.called()
    right = cells["hashtag_sample"].astype(str).to_numpy() == data.truth
    probability = cells["hashtag_probability"].to_numpy()
    assert failed == []
    assert right.mean() > (0.97 if fold > 10 else 0.88)
    assert abs(right.mean() - probability.mean()) < 0.02
    unsure = probability < 0.9
    if unsure.sum() > 50:
        assert abs(right[unsure].mean() - probability[unsure].mean()) < 0.12
    n_carried = cells["hashtags_carried"].to_numpy()
    assert ((n_carried == 2) == (cells["hashtag_sample"] == "doublet")).all()
    assert ((n_carried == 0) == (cells["hashtag_sample"] == "none")).all()


@pytest.mark.parametrize("failed", [1, 2, 4])
def test_a_hashtag_that_failed_is_named_and_carried_by_no_cell(failed: int) -> None:
    data = tagged(failed=failed)
    cells, named, _ = data.called()
    assert named == NAMES[:failed]
    assert not cells["hashtag_sample"].isin(named).any()
    others = data.carried[:, failed:].sum(axis=1) == 1
    others &= ~data.carried[:, :failed].any(axis=1)
    right = cells["hashtag_sample"].astype(str).to_numpy()[others] == data.truth[others]
    assert right.mean() > 0.97 if others.any() else named == NAMES[:4]


def test_each_batch_has_levels_of_its_own() -> None:
    one, other = tagged(seed=1), tagged(seed=2)
    counts = np.vstack([one.counts, 20 * other.counts])
    group = np.repeat(["lane 1", "lane 2"], len(one.counts))
    both = Tagged(counts, np.vstack([one.carried, other.carried]), np.r_[one.truth, other.truth])
    together = both.called(group).cells
    apart = pd.concat(
        [part.called().cells for part in (one, other._replace(counts=20 * other.counts))]
    )
    pd.testing.assert_frame_equal(together, apart.reset_index(drop=True))
    right = together["hashtag_sample"].astype(str).to_numpy() == both.truth
    assert right.mean() > 0.97


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_a_hashtag_that_failed_in_one_batch_is_said(failed: int) -> None:
    """Where the batch has other samples only, few of its cells lack a tag, and nothing is said."""
    good, poor = tagged(seed=1), tagged(n_cells=1000, seed=2, failed=failed)
    counts = np.vstack([good.counts, poor.counts])
    group = np.repeat(["lane 1", "lane 2"], [2000, 1000])
    calls = call_hashtags(counts, NAMES[:4], group)
    assert calls.failed == []
    assert set(calls.without) == ({"lane 2"} if failed else set())
    if failed:
        assert calls.without["lane 2"] == pytest.approx(failed / 4, abs=0.1)
    others_only = good.counts[(~good.carried[:, 0]).nonzero()[0]]
    group = np.repeat(["lane 1", "lane 2"], [2000, len(others_only)])
    both = np.vstack([good.counts, others_only])
    assert call_hashtags(both, NAMES[:4], group).without == {}


def test_few_cells_are_not_told() -> None:
    cells, failed, _ = tagged(n_cells=12).called()
    assert failed == NAMES[:4]
    assert (cells["hashtag_sample"] == "not told").all()
    assert cells["hashtag_probability"].isna().all()


def test_cells_with_missing_counts_are_not_told_and_change_no_others() -> None:
    data = tagged()
    counts = np.vstack([data.counts, np.full((5, 4), np.nan)])
    cells = call_hashtags(counts, NAMES[:4], np.zeros(len(counts))).cells
    assert (cells["hashtag_sample"][-5:] == "not told").all()
    whole = data.called().cells["hashtag_sample"]
    assert (cells["hashtag_sample"][:-5].astype(str) == whole.astype(str)).all()


@pytest.mark.parametrize("own_lane", [False, True])
def test_a_tag_that_all_cells_of_a_batch_carry_is_told_by_the_other_batches(own_lane: bool) -> None:
    data = tagged(n_cells=3000, n_tags=3)
    one_tag = data.carried.sum(axis=1) == 1
    of_first = one_tag & data.carried[:, 0]
    group = np.where(of_first, "lane 2", "lane 1")
    if own_lane:  # each tag has a batch of its own, as where the batches are the samples
        data = Tagged(data.counts[one_tag], data.carried[one_tag], data.truth[one_tag])
        group = data.truth
    cells, failed, _ = data.called(group)
    right = cells["hashtag_sample"].astype(str).to_numpy() == data.truth
    assert failed == []
    assert right[group == group[of_first.argmax() if not own_lane else 0]].mean() > 0.95


def test_batches_with_tags_of_their_own_keep_their_levels() -> None:
    one, other = tagged(n_tags=2, seed=1), tagged(n_tags=2, seed=2)
    weak = tagged(n_tags=2, seed=3).counts * ~tagged(n_tags=2, seed=3).carried
    counts = np.vstack([np.hstack([one.counts, weak]), np.hstack([weak, 20 * other.counts])])
    group = np.repeat(["lane 1", "lane 2"], len(one.counts))
    cells, failed, _ = call_hashtags(counts, NAMES[:4], group)
    apart = call_hashtags(20 * other.counts, NAMES[2:4], np.zeros(len(other.counts))).cells
    assert failed == []
    found = cells["hashtag_sample"].astype(str).to_numpy()
    assert (found[: len(one.truth)] == one.truth).mean() > 0.97
    assert (found[len(one.truth) :] == apart["hashtag_sample"].astype(str)).mean() > 0.99


def test_many_cells_are_told_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tagged(n_cells=500)
    whole = data.called().cells
    monkeypatch.setattr("totalvi.run.hashtag_samples._CELLS_AT_ONCE", 64)
    pd.testing.assert_frame_equal(data.called().cells, whole)


def test_the_order_of_cells_and_tags_changes_nothing() -> None:
    data = tagged(n_cells=400)
    cells = data.called().cells
    turned = call_hashtags(data.counts[::-1, ::-1], NAMES[:4][::-1], np.zeros(400)).cells[::-1]
    assert (turned["hashtag_sample"].astype(str).to_numpy() == cells["hashtag_sample"]).all()
    np.testing.assert_allclose(
        turned["hashtag_probability"], cells["hashtag_probability"], atol=1e-3
    )


def of_two_donors() -> MuData:
    data = totalvi.simulate_blood(n_cells=300, n_donors=2, seed=0)
    hashtags = tagged(n_cells=data.n_obs, n_tags=2, seed=3)
    tags = AnnData(hashtags.counts.astype(np.float32), obs=data.obs[[]].copy())
    tags.var_names = ["HTO_1", "HTO_2"]
    with mudata.set_options(pull_on_update=False):
        both = MuData({**data.mod, "hto": tags})
    both.obs["lane"] = np.where(np.arange(data.n_obs) % 2, "lane 1", "lane 2")
    return both


@pytest.mark.parametrize("batch", [None, "lane"])
def test_a_run_counts_populations_by_the_samples_of_hashtags(
    batch: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = of_two_donors()
    data.write(tmp_path / "cells.h5mu")
    options = ["--epochs", "3", "--hierarchy", "blood", *(["--batch", batch] if batch else [])]
    out = tmp_path / "out"
    assert execute(["run", str(tmp_path / "cells.h5mu"), "-o", str(out), *options]) == 0
    assert "note: hashtags name the sample of" in capsys.readouterr().out
    with h5py.File(out / "results.h5mu") as file:
        obs = read_elem(file["obs"])
        assert not set(read_elem(file["mod/prot/var"]).index) & {"HTO_1", "HTO_2"}
    cells = pd.read_csv(out / "tables" / "cells.csv.gz", index_col="cell")
    assert (obs["hashtag_sample"].astype(str) == cells["hashtag_sample"]).all()
    by_sample = pd.read_csv(out / "tables" / "population_samples.csv", keep_default_na=False)
    expected = obs["hashtag_sample"].astype(str)
    expected = expected if batch is None else obs[batch].astype(str) + ", " + expected
    assert set(by_sample["sample"]) == set(expected)
    doublets = pd.read_csv(
        out / "tables" / "doublets.csv", keep_default_na=False, index_col="group"
    )
    n_two = (obs["hashtags_carried"] == 2).sum()
    assert int(doublets.loc["all cells", "several_hashtags"]) == n_two > 5
    if batch is None:
        assert int(doublets.loc["doublet", "cells"]) == n_two
    page = build_report(out).read_text(encoding="utf-8")
    assert "By the hashtags," in page
    assert execute(["gate", str(out), "--hierarchy", "blood"]) == 0
    again = pd.read_csv(out / "tables" / "population_samples.csv", keep_default_na=False)
    assert set(again["sample"]) == set(expected)


def test_hashtags_that_failed_are_made_up_with_all_that_counts_by_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, options = of_two_donors(), {"max_epochs": 2, "hierarchy": "blood", "progress": False}
    run(data, tmp_path / "whole", **options)

    def broken(*_: object) -> None:
        raise RuntimeError("it is broken")

    with monkeypatch.context() as patch:
        patch.setattr("totalvi.run.after_fit.hashtags_of_run", broken)
        with pytest.raises(IncompleteError, match="hashtags failed"):
            run(data, tmp_path / "out", **options)
    run(data, tmp_path / "out", resume=True, **options)
    for name in ("cells.csv.gz", "population_samples.csv", "doublets.csv"):
        found, expected = (pd.read_csv(tmp_path / d / "tables" / name) for d in ("out", "whole"))
        pd.testing.assert_frame_equal(found, expected, check_like=True)


def test_a_named_sample_goes_before_hashtags_and_batches() -> None:
    obs = pd.DataFrame({"donor": ["a", "b"], "lane": [1, 2], "hashtag_sample": ["HTO_1", "none"]})
    expected = {
        ("donor", "lane", True): ["a", "b"],
        (None, "lane", True): ["1, HTO_1", "2, none"],
        (None, None, True): ["HTO_1", "none"],
        (None, "lane", False): [1, 2],
    }
    for (sample, batch, by_hashtag), names in expected.items():
        found = samples_of(obs, sample, batch, by_hashtag)
        assert found is not None
        assert found.tolist() == names
    assert samples_of(obs, None, None, False) is None


def kept(data: MuData, name: str, tags: AnnData, **more: pd.Series) -> MuData:
    with mudata.set_options(pull_on_update=False):
        changed = MuData({**{k: v for k, v in data.mod.items() if k != name}, name: tags})
    changed.obs = data.obs.assign(**more)
    return changed


@pytest.mark.parametrize("is_sparse", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_on_disk_tells_hashtags_too(is_sparse: bool, tmp_path: Path) -> None:
    data = of_two_donors()
    tags = data["hto"].copy()
    tags.X = sparse.csr_matrix(tags.X) if is_sparse else tags.X
    data = kept(data, "hto", tags)
    data.write(tmp_path / "cells.h5mu")
    settings = {"hierarchy": "none", "max_epochs": 1, "progress": False}
    in_memory = run(data, tmp_path / "memory", **settings)
    on_disk = run(tmp_path / "cells.h5mu", tmp_path / "disk", on_disk=True, **settings)
    assert not {"failed"} & {*on_disk.record, *in_memory.record}
    assert on_disk.record["hashtags"] == in_memory.record["hashtags"]
    assert on_disk.record["hashtags"]["one"] > 200


class Columns(dict[str, object]):
    """What a results file gets, in its place."""

    add_obs = dict.__setitem__


def test_names_columns_and_fractions_of_a_users_hashtags() -> None:
    data = of_two_donors()
    tags = data["hto"].copy()
    tags.X = tags.X * np.float32(0.97)
    tags.var_names = ["HTO", "HTO"]
    mine = pd.Series("mine", index=data.obs_names)
    columns = Columns()
    cells, warnings = hashtags_of_run(kept(data, "hto", tags, hashtag_sample=mine), None, columns)
    assert cells is not None
    assert set(columns) == set(cells)
    assert set(cells["hashtag_sample"].cat.categories) >= {"HTO", "HTO 1"}
    assert count_calls(cells)["tags"] == 2
    assert [warning for warning in warnings if "hashtag_sample" in warning] == warnings


@pytest.mark.parametrize("what", ["nothing", "logarithms", "centred"])
def test_hashtags_without_counts_are_a_warning(what: str) -> None:
    data = of_two_donors()
    tags = data["hto"].copy()
    logs = np.log1p(tags.X)
    tags.X = {"nothing": None, "logarithms": logs, "centred": logs - logs.mean(axis=0)}[what]
    columns = Columns()
    cells, warnings = hashtags_of_run(kept(data, "hto", tags), None, columns)
    assert cells is None
    assert not columns
    assert len(warnings) == 1
    assert '"hto" has no counts' in warnings[0]


def test_a_report_of_an_older_run_has_no_numbers_of_samples(tmp_path: Path) -> None:
    data = of_two_donors()
    run(data, tmp_path / "out", hierarchy="none", max_epochs=1, progress=False)
    path = tmp_path / "out" / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["hashtags"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert "By the hashtags," not in build_report(tmp_path / "out").read_text(encoding="utf-8")


def test_a_users_own_column_is_no_result_of_hashtags() -> None:
    data = of_two_donors()
    model = totalvi.Model(
        kept(data, "hto", data["hto"], hashtag_sample=data.obs["lane"]),
        batch_key="lane",
        n_hidden=8,
    )
    sample, _ = samples_and_clusters(model, None)
    assert sample is not None
    assert set(sample) == {"lane 1", "lane 2"}


def test_hashtags_that_tell_nothing_are_a_warning(tmp_path: Path) -> None:
    data = of_two_donors()
    data["hto"].X = np.random.default_rng(0).poisson(5.0, data["hto"].shape).astype(np.float32)
    found = run(data, tmp_path / "out", hierarchy="none", max_epochs=1, progress=False)
    assert any("2 of 2 hashtags tell no cells" in warning for warning in found.record["warnings"])
    assert found.record["hashtags"] is None
    assert count_calls(None) is None
