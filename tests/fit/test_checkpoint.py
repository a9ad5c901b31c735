"""A fit that resumes from its checkpoint ends with the numbers of one that was never interrupted."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from shared_fits import without_modalities
from totalvi.data.cells import fingerprint
from totalvi.data.describe import describe
from totalvi.errors import CheckpointError, Interrupted, OutputError
from totalvi.fit import batches as feed
from totalvi.fit.batches import shuffled_windows
from totalvi.fit.checkpoint import (
    Saved,
    kept_accelerator,
    read_checkpoint,
    write_checkpoint,
)
from totalvi.fit.loop import Fit

FIT: dict[str, Any] = {
    "max_epochs": 5,
    "batch_size": 30,
    "n_epochs_kl_warmup": 2,
    "accelerator": "cpu",
}
N_STEPS = 5 * 4  # 108 training cells


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


def build(mdata: MuData, **options: Any) -> totalvi.Model:
    return totalvi.Model(mdata, **({"batch_key": "batch"} | SMALL | options))


@contextmanager
def signal_after(step: int, number: int = signal.SIGTERM) -> Iterator[None]:
    """Send this process a signal in the middle of a training step."""
    original, done = Fit.step, []

    def watched(self: Any, batch: Any) -> Any:
        done.append(None)
        if len(done) == step:
            os.kill(os.getpid(), number)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "step", watched)
        yield


def interrupted(mdata: MuData, path: Path, step: int, **options: Any) -> None:
    with signal_after(step), pytest.raises(Interrupted):
        build(mdata, **options).train(**FIT, checkpoint=path)


def assert_same(ours: totalvi.Model, theirs: totalvi.Model) -> None:
    one, other = ours.module.state_dict(), theirs.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    columns = [column for column in theirs.history if column != "seconds"]
    assert ours.history[columns].equals(theirs.history[columns])
    assert ours.fit_summary == theirs.fit_summary
    np.testing.assert_array_equal(
        ours.get_latent_representation(), theirs.get_latent_representation()
    )


RANDOM_STEPS = sorted(np.random.default_rng(6).choice(np.arange(1, N_STEPS), 5, replace=False))


@pytest.fixture(scope="module")
def uninterrupted(mdata: MuData) -> totalvi.Model:
    model = build(mdata)
    model.train(**FIT)
    return model


@pytest.mark.parametrize("step", [*RANDOM_STEPS, 4, N_STEPS])  # 4: the last of its epoch
def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(
    mdata: MuData, uninterrupted: totalvi.Model, tmp_path: Path, step: int
) -> None:
    path = tmp_path / "fit"
    interrupted(mdata, path, step)
    model = build(mdata)
    model.train(**FIT, resume=path)
    assert_same(model, uninterrupted)


def test_interrupted_at_every_turn(
    mdata: MuData, uninterrupted: totalvi.Model, tmp_path: Path
) -> None:
    path, n_interruptions = tmp_path / "fit", 0
    for _ in range(N_STEPS):
        model = build(mdata)
        try:
            with signal_after(3):
                model.train(**FIT, checkpoint=path, resume=True)
            break
        except Interrupted:
            n_interruptions += 1
    assert n_interruptions == 6
    assert_same(model, uninterrupted)


@pytest.mark.parametrize(
    ("options", "fit"),
    [
        ({"library": "latent", "latent_distribution": "ln"}, {"schedule": "constant"}),
        ({"gene_likelihood": "zinb", "fused": False}, {"precision": "32-true"}),
        ({"background_samples": 3, "staining_level": True}, {"precision": "32-true"}),
        ({}, {"precision": "bf16-mixed"}),
        ({}, {"early_stopping_patience": 1, "lr": 0.1, "n_epochs_kl_warmup": 0, "max_epochs": 30}),
        ({}, {"train_size": 1.0}),
    ],
    ids=str,
)
def test_other_fits_go_on_too(
    mdata: MuData, tmp_path: Path, options: dict[str, Any], fit: dict[str, Any]
) -> None:
    whole, model, path = build(mdata, **options), build(mdata, **options), tmp_path / "fit"
    whole.train(**(FIT | fit))
    with signal_after(6), pytest.raises(Interrupted):
        model.train(**(FIT | fit), checkpoint=path)
    again = build(mdata, **options)
    again.train(resume=path)  # arguments at their defaults are those of the checkpoint
    assert_same(again, whole)


@pytest.mark.parametrize("step", [2, 4, 9, 14])
def test_a_fit_on_disk_goes_on_bit_for_bit(
    mdata: MuData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(feed, "shuffled_windows", partial(shuffled_windows, window=60, block=8))
    monkeypatch.setattr("totalvi.fit.loop.WINDOW", 60)
    store, path = tmp_path / "cells.h5mu", tmp_path / "fit"
    mdata.write(store)
    whole, model = (totalvi.Model(store, batch_key="batch", **SMALL) for _ in range(2))
    whole.train(**FIT)
    with signal_after(step), pytest.raises(Interrupted):
        model.train(**FIT, checkpoint=path)
    again = totalvi.Model(store, batch_key="batch", **SMALL)
    again.train(**FIT, resume=path)
    assert_same(again, whole)
    assert again._data is not None
    assert again._data.on_disk
    assert again.fingerprint == fingerprint(describe(mdata, again.schema.columns))


def test_a_fit_against_an_adversary_goes_on_too(tmp_path: Path) -> None:
    panels = annotated(n_unmeasured=2)
    whole, model, again, other = (build(panels) for _ in range(4))
    whole.train(**FIT, adversarial=3.0)
    with signal_after(6), pytest.raises(Interrupted):
        model.train(**FIT, adversarial=3.0, checkpoint=tmp_path / "fit")
    kept = read_checkpoint(tmp_path / "fit").tensors
    assert any(name.startswith("adversary.optimizer.") for name in kept)
    with pytest.raises(CheckpointError, match=r"adversary_weight is 3\.0 there and 1\.0 here"):
        again.train(resume=tmp_path / "fit", adversarial=True)
    again.train(resume=tmp_path / "fit")
    assert_same(again, whole)
    other.train(**FIT)  # or nothing would have been tested
    assert not other.history["train_loss"].equals(whole.history["train_loss"])


def test_a_fit_of_a_mosaic_goes_on_too(mdata: MuData, tmp_path: Path) -> None:
    cells = without_modalities(mdata)
    whole, model, again = (build(cells) for _ in range(3))
    whole.train(**FIT)
    with signal_after(6), pytest.raises(Interrupted):
        model.train(**FIT, checkpoint=tmp_path / "fit")
    again.train(resume=tmp_path / "fit")
    assert_same(again, whole)


def test_a_second_fit_goes_on_as_the_second(mdata: MuData, tmp_path: Path) -> None:
    models = [build(mdata) for _ in range(2)]
    for model in models:
        model.train(**FIT)
    models[0].train(**FIT)
    with signal_after(7), pytest.raises(Interrupted):
        models[1].train(**FIT, checkpoint=tmp_path / "fit")
    with pytest.raises(CheckpointError, match="number of the fit is 2 there and 1 here"):
        build(mdata).train(**FIT, resume=tmp_path / "fit")
    models[1].train(**FIT, resume=tmp_path / "fit")
    assert_same(models[1], models[0])


@pytest.fixture
def obeyed_sigint() -> Iterator[None]:
    """As in the foreground; jobs of a shell in the background start with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("obeyed_sigint")
def test_an_interrupted_model_is_as_before_and_handlers_are_put_back(
    mdata: MuData, uninterrupted: totalvi.Model, tmp_path: Path
) -> None:
    model, handlers = build(mdata), [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    model.train(**FIT)
    with (
        signal_after(5, signal.SIGINT),
        pytest.raises(KeyboardInterrupt, match=f"SIGINT.*{tmp_path / 'fit'}") as caught,
    ):
        model.train(**FIT, checkpoint=tmp_path / "fit")
    assert caught.value.signal_number == signal.SIGINT
    assert_same(model, uninterrupted)
    assert handlers == [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_a_finished_fit_needs_no_more_steps(
    mdata: MuData, uninterrupted: totalvi.Model, tmp_path: Path
) -> None:
    build(mdata).train(**FIT, checkpoint=tmp_path / "fit")
    model = build(mdata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fit, "step", None)
        model.train(**FIT, resume=tmp_path / "fit")
    assert_same(model, uninterrupted)


def test_other_threads_leave_signals_alone(mdata: MuData, tmp_path: Path) -> None:
    failures = []

    def train() -> None:
        try:
            build(mdata).train(max_epochs=1, accelerator="cpu", checkpoint=tmp_path / "fit")
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert not failures
    assert read_checkpoint(tmp_path / "fit").values["stopped"] == "all 1 epochs done"


@pytest.mark.parametrize(
    ("every", "n_written"), [(2, 3), (timedelta(0), N_STEPS + 5 + 1), (timedelta(hours=1), 1)]
)
def test_checkpoints_by_epoch_and_by_time(
    mdata: MuData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: Any, n_written: int
) -> None:
    written = []
    monkeypatch.setattr(
        "totalvi.fit.checkpoint.write_checkpoint", lambda *given: written.append(given)
    )
    build(mdata).train(**FIT, checkpoint=tmp_path / "fit", checkpoint_every=every)
    assert len(written) == n_written


# ---------------------------------------------------------------- what may not go on


@pytest.mark.parametrize(
    ("options", "fit", "message"),
    [
        ({"seed": 1}, {}, "seed is 0 there and 1 here"),
        ({"n_latent": 3}, {}, "network, n_latent is 4 there and 3 here"),
        ({}, {"max_epochs": 9}, "plan, max_epochs is 5 there and 9 here"),
        ({}, {"lr": 0.1}, "plan, learning_rate is 0.008 there and 0.1 here"),
        ({}, {"train_size": 0.5}, "split, train cells differ"),
        ({"batch_key": None}, {}, "data, annotation differ"),
    ],
    ids=str,
)
def test_another_fit_is_refused_by_what_differs(
    mdata: MuData, tmp_path: Path, options: dict[str, Any], fit: dict[str, Any], message: str
) -> None:
    interrupted(mdata, tmp_path / "fit", 2)
    before = (tmp_path / "fit").read_bytes()
    with pytest.raises(CheckpointError, match=message):
        build(mdata, **options).train(**(FIT | fit), resume=tmp_path / "fit")
    assert (tmp_path / "fit").read_bytes() == before


def test_other_counts_are_refused(mdata: MuData, tmp_path: Path) -> None:
    interrupted(mdata, tmp_path / "fit", 2)
    for modality, message in (("rna", "RNA counts differ"), ("prot", "protein counts differ")):
        other = mdata.copy()
        other[modality].X[5, 0] += 1
        with pytest.raises(CheckpointError, match=message):
            build(other).train(resume=tmp_path / "fit")


def test_arguments_that_contradict_each_other(mdata: MuData, tmp_path: Path) -> None:
    model, path = build(mdata), tmp_path / "fit"
    with pytest.raises(ValueError, match="without a checkpoint"):
        model.train(resume=True)
    with pytest.raises(ValueError, match="one file for both"):
        model.train(resume=path, checkpoint=tmp_path / "other")
    for every in (0, True, timedelta(-1), "1 h"):
        with pytest.raises(ValueError, match="checkpoint_every is"):
            model.train(checkpoint=path, checkpoint_every=every)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="is not there"):
        model.train(resume=path)
    path.write_text("years of work")
    with pytest.raises(OutputError, match="exists; resume it"):
        model.train(checkpoint=path)
    assert path.read_text() == "years of work"


# ---------------------------------------------------------------- the file

KEPT = Saved(
    {"loss": float("inf")},
    {"a": torch.tensor([1.5, -0.0]), "b": torch.tensor(3)},
    {"seed": 2**100, "plan": {"rate": 0.1}},
)


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "fit", KEPT)
    found = read_checkpoint(tmp_path / "fit")
    assert (found.settings, found.values) == (KEPT.settings, KEPT.values)
    for name, tensor in KEPT.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["fit"]


def test_every_cut_and_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "fit"
    write_checkpoint(path, KEPT)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            read_checkpoint(path)


def test_files_of_other_kinds_and_later_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        read_checkpoint(tmp_path)
    (tmp_path / "text").write_text("years of work")
    with pytest.raises(CheckpointError, match="is no checkpoint, or damaged"):
        read_checkpoint(tmp_path / "text")
    monkeypatch.setattr("totalvi.fit.checkpoint.FORMAT_VERSION", 2)
    write_checkpoint(tmp_path / "later", KEPT)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format version 2, and this totalvi reads 1"):
        read_checkpoint(tmp_path / "later")


def test_a_checkpoint_of_the_first_version_resumes(tmp_path: Path) -> None:
    """It was interrupted in the third of its epochs, against an adversary."""
    cells = totalvi.simulate(
        n_cells=60, n_genes=20, n_proteins=4, n_batches=2, n_unmeasured=1, seed=3
    )
    path = tmp_path / "fit"
    shutil.copy(Path(__file__).parent / "stored" / "version_1.checkpoint", path)
    stored = read_checkpoint(path)
    resumed, whole = (
        totalvi.Model(cells, batch_key="batch", n_hidden=4, n_latent=2, foreground_penalty=0.0)
        for _ in range(2)
    )
    resumed.train(resume=path)
    assert resumed.history[:2].to_dict("records") == stored.values["rows"]
    assert len(resumed.history) == 4
    assert np.isfinite(resumed.history["validation_loss"]).all()
    whole.train(
        4, batch_size=20, n_epochs_kl_warmup=2, adversarial=2.0, accelerator="cpu",
        precision="32-true",
    )  # fmt: skip
    # it goes on with the loss that it began with, which was the paper's
    assert list(resumed.history) == list(stored.values["rows"][0])
    ours = resumed.history[["train_loss", "validation_loss"]].to_numpy()
    theirs = whole.history[["train_loss", "validation_paper_loss"]].to_numpy()
    if not np.allclose(ours[:2], theirs[:2], rtol=1e-3):
        pytest.skip(f"torch {torch.__version__} draws other numbers than that of the stored fit")
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert resumed.fit_summary == whole.fit_summary


def test_the_fit_to_resume_decides_on_the_accelerator_unless_one_is_asked_for(
    tmp_path: Path,
) -> None:
    path, text = tmp_path / "fit", tmp_path / "text"
    text.write_text("years of work")
    write_checkpoint(path, KEPT._replace(settings={"plan": {"accelerator": "cuda"}}))
    assert kept_accelerator(path, True, "auto") == "cuda"
    assert kept_accelerator(None, path, "auto") == "cuda"
    assert kept_accelerator(path, True, "cpu") == "cpu"
    for file, resume in ((path, False), (None, False), (tmp_path / "absent", True), (text, True)):
        assert kept_accelerator(file, resume, "auto") == "auto"
