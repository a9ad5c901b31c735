"""Loggers get the history as it grows, callbacks end fits, also in fits that resume."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning_fabric.loggers import CSVLogger
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.fit.callbacks import Listeners

FIT: dict[str, Any] = {"max_epochs": 4, "batch_size": 30, "accelerator": "cpu", "progress": False}


@pytest.fixture(scope="module")
def mdata() -> MuData:
    return annotated()


def build(mdata: MuData) -> totalvi.Model:
    return totalvi.Model(mdata, batch_key="batch", **SMALL)


class Recorder:
    """A logger that has only what is needed, and a callback, which keep what they are told."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.epochs: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append(metrics)
        self.epochs.append(step)

    def __call__(self, epoch: int, row: Mapping[str, float]) -> None:
        self.log_metrics(dict(row), epoch)

    @property
    def history(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows, index=pd.Index(self.epochs, name="epoch"))


class FullRecorder(Recorder):
    """One that also takes hyperparameters and is finalised."""

    def __init__(self) -> None:
        super().__init__()
        self.hyperparameters: dict[str, Any] = {}
        self.statuses: list[str] = []
        self.n_saved = 0

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        self.hyperparameters = params

    def save(self) -> None:
        self.n_saved += 1

    def finalize(self, status: str) -> None:
        self.statuses.append(status)


def assert_is_history(told: pd.DataFrame, model: totalvi.Model) -> None:
    pd.testing.assert_frame_equal(told, pd.DataFrame(model.history), check_index_type=False)


def test_loggers_and_callbacks_are_told_the_history_of_all_fits(mdata: MuData) -> None:
    model, logger, callback = build(mdata), Recorder(), Recorder()
    model.train(**FIT, logger=logger, callbacks=callback)
    assert_is_history(logger.history, model)
    model.train(**FIT, logger=[logger], callbacks=[callback, lambda *_: None])
    assert logger.epochs == list(range(8))
    assert_is_history(logger.history, model)
    assert_is_history(callback.history, model)


def test_a_fit_with_listeners_has_the_numbers_of_one_without(mdata: MuData) -> None:
    alone, with_listeners = build(mdata), build(mdata)
    alone.train(**FIT)
    with_listeners.train(**FIT, logger=Recorder(), callbacks=Recorder())
    one, other = alone.module.state_dict(), with_listeners.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_hyperparameters_are_those_of_model_and_plan(mdata: MuData) -> None:
    model, logger = build(mdata), FullRecorder()
    model.train(**FIT, logger=logger, lr=0.003)
    told = logger.hyperparameters
    assert model.plan is not None
    assert told["learning_rate"] == model.plan.learning_rate == 0.003
    assert told["n_hidden"] == SMALL["n_hidden"]
    assert (told["n_genes"], told["n_proteins"]) == (mdata["rna"].n_vars, mdata["prot"].n_vars)
    assert told["n_training_cells"] == len(model.split.train)
    assert told["seed"] == 0
    assert logger.statuses == ["success"]
    assert logger.n_saved == 4


def test_the_logger_of_fabric_writes_each_epoch_at_once(mdata: MuData, tmp_path: Path) -> None:
    model, logger = build(mdata), CSVLogger(tmp_path, name="fits")
    lengths = []

    def read(*_: Any) -> None:
        lengths.append(len(pd.read_csv(Path(logger.log_dir) / "metrics.csv")))

    model.train(**FIT, logger=logger, callbacks=read)
    assert lengths == [1, 2, 3, 4]
    written = pd.read_csv(Path(logger.log_dir) / "metrics.csv").set_index("step")
    assert set(written) == set(model.history)
    np.testing.assert_allclose(written[list(model.history)], model.history)


# ------------------------------------------------------------------------------------ ending a fit


@pytest.mark.parametrize("warmup", [0, 10])
def test_a_callback_ends_the_fit_and_its_best_weights_are_kept(mdata: MuData, warmup: int) -> None:
    model = build(mdata)
    model.train(**FIT, n_epochs_kl_warmup=warmup, callbacks=lambda epoch, _row: epoch == 2)
    assert len(model.history) == 3
    assert model.fit_summary["stopped"] == "a callback ended it"
    losses = model.history["validation_loss"]
    assert model.fit_summary["best_epoch"] == (2 if warmup else losses.argmin())
    assert np.isfinite(model.get_latent_representation()).all()


def test_all_callbacks_are_told_though_the_first_ends_the_fit(mdata: MuData) -> None:
    model, second = build(mdata), Recorder()
    model.train(**FIT, callbacks=[lambda *_: np.bool_(True), second])
    assert second.epochs == [0]


def test_without_validation_cells_the_last_weights_count(mdata: MuData) -> None:
    model = build(mdata)
    model.train(**FIT, train_size=1.0, callbacks=lambda epoch, _row: epoch == 1)
    assert model.fit_summary["best_epoch"] == 1
    assert len(model.history) == 2


def test_what_a_callback_answers_in_the_last_epoch_is_not_the_reason(mdata: MuData) -> None:
    model = build(mdata)
    model.train(**FIT, callbacks=lambda epoch, _row: epoch == 3)
    assert model.fit_summary["stopped"] == "all 4 epochs done"


def test_a_callback_cannot_change_the_history(mdata: MuData) -> None:
    def change(_epoch: int, row: Any) -> None:
        row["train_loss"] = 0.0

    with pytest.raises(TypeError):
        build(mdata).train(**FIT, callbacks=change)


def test_a_callback_that_fails_leaves_the_model_as_it_was_and_the_log_says_so(
    mdata: MuData,
) -> None:
    def fail(_epoch: int, _row: Any) -> None:
        raise RuntimeError("no more")

    model, logger = build(mdata), FullRecorder()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    with pytest.raises(RuntimeError, match="no more"):
        model.train(**FIT, logger=logger, callbacks=fail)
    assert all(torch.equal(before[name], v) for name, v in model.module.state_dict().items())
    assert not model.is_trained
    assert logger.statuses == ["failed"]


# ---------------------------------------------------------------------------------------- resuming


def interrupt_after(epoch: int) -> Any:
    def callback(now: int, _row: Any) -> None:
        if now == epoch:
            raise KeyboardInterrupt

    return callback


def test_a_resumed_fit_tells_of_its_earlier_epochs_first(mdata: MuData, tmp_path: Path) -> None:
    path, whole = tmp_path / "fit", build(mdata)
    whole.train(**FIT)
    with pytest.raises(KeyboardInterrupt):
        build(mdata).train(**FIT, checkpoint=path, checkpoint_every=1, callbacks=interrupt_after(2))
    model, logger, callback = build(mdata), Recorder(), Recorder()
    model.train(**FIT, resume=path, logger=logger, callbacks=callback)
    assert logger.epochs == callback.epochs == [0, 1, 2, 3]
    assert_is_history(logger.history, model)
    columns = [name for name in whole.history if name != "seconds"]
    assert model.history[columns].equals(whole.history[columns])


def test_a_fit_that_a_logger_ends_is_resumed_from_its_last_epoch(
    mdata: MuData, tmp_path: Path
) -> None:
    class Full(Recorder):
        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            if step == 2:
                raise OSError("No space left on device")

    path, whole = tmp_path / "fit", build(mdata)
    whole.train(**FIT)
    with pytest.raises(OSError, match="No space left"):
        build(mdata).train(**FIT, checkpoint=path, logger=Full())
    model, seconds = build(mdata), []
    model.train(**FIT, resume=path, callbacks=lambda _, row: seconds.append(row["seconds"]))
    columns = [name for name in whole.history if name != "seconds"]
    assert model.history[columns].equals(whole.history[columns])
    assert len(seconds) == len(model.history)


def test_answers_about_earlier_epochs_do_not_end_a_resumed_fit(
    mdata: MuData, tmp_path: Path
) -> None:
    path = tmp_path / "fit"
    with pytest.raises(KeyboardInterrupt):
        build(mdata).train(**FIT, checkpoint=path, checkpoint_every=1, callbacks=interrupt_after(2))
    model = build(mdata)
    model.train(**FIT, resume=path, callbacks=lambda epoch, _row: epoch == 0)
    assert len(model.history) == 4


def test_a_fit_that_a_callback_ended_stays_ended(mdata: MuData, tmp_path: Path) -> None:
    path, ended = tmp_path / "fit", build(mdata)
    ended.train(**FIT, checkpoint=path, callbacks=lambda epoch, _row: epoch == 1)
    model, logger = build(mdata), Recorder()
    model.train(**FIT, resume=path, logger=logger)
    assert logger.epochs == [0, 1]
    assert model.fit_summary == ended.fit_summary
    one, other = ended.module.state_dict(), model.module.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


# ----------------------------------------------------------------------------------- wrong arguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"logger": True}, r"logger is True; allowed are objects with log_metrics"),
        ({"logger": [Recorder(), "csv"]}, r"logger is 'csv'; allowed"),
        ({"callbacks": [3]}, r"callbacks is 3; allowed are functions"),
        ({"callbacks": "stop"}, r"callbacks is 'stop'; allowed are functions"),
    ],
)
def test_what_cannot_listen_is_refused(mdata: MuData, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(mdata).train(**FIT, **wrong)


def test_none_and_one_and_several_listeners() -> None:
    one = Recorder()
    assert Listeners.of(None, ()) == Listeners((), ())
    assert Listeners.of(one, one) == Listeners((one,), (one,))
    assert Listeners.of([one, one], [one]) == Listeners((one, one), (one,))


class Unreachable(FullRecorder):
    def finalize(self, status: str) -> None:
        raise OSError("no server")


def test_a_logger_that_cannot_be_finalised_costs_neither_the_fit_nor_other_logs(
    mdata: MuData,
) -> None:
    model, other = build(mdata), FullRecorder()
    with pytest.warns(
        UserWarning, match=r"Unreachable could not be finalised \(OSError: no server"
    ):
        model.train(**FIT, logger=[Unreachable(), other])
    assert other.statuses == ["success"]
    assert len(model.history) == 4
    assert model.get_latent_representation().shape[0] == mdata.n_obs


def test_a_callbacks_own_error_is_the_one_that_is_raised(mdata: MuData) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("of the callback")

    with pytest.warns(UserWarning, match="finalised"), pytest.raises(KeyError, match="callback"):
        build(mdata).train(**FIT, logger=Unreachable(), callbacks=fail)


@pytest.mark.parametrize("answer", [1, 0.5, "yes", np.array([1, 2]), np.False_])
def test_only_true_ends_a_fit(mdata: MuData, answer: Any) -> None:
    model = build(mdata)
    model.train(**FIT, callbacks=lambda *_: answer)
    assert len(model.history) == 4
    model.train(**FIT, callbacks=lambda *_: np.True_)
    assert len(model.history) == 5


def test_a_class_is_no_logger(mdata: MuData) -> None:
    with pytest.raises(ValueError, match="logger"):
        build(mdata).train(**FIT, logger=CSVLogger)


def test_loggers_are_finalised_if_another_refuses_the_hyperparameters(mdata: MuData) -> None:
    class Refusing(FullRecorder):
        def log_hyperparams(self, params: dict[str, Any]) -> None:
            raise OSError("no server")

    first = FullRecorder()
    with pytest.raises(OSError, match="no server"):
        build(mdata).train(**FIT, logger=[first, Refusing()])
    assert (first.statuses, first.rows) == (["failed"], [])
