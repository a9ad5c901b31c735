"""Compare fits with and without a latent staining level of each cell.

    python benchmarks/staining.py --seeds 3

Six data sets, thinned to 2,000 cells and 500 genes; isotype controls are modelled like other antibodies
(`isotype_controls=()`). The forms of the model, the last two of them with seed 0 alone:

- "none": without a level.
- "level": `staining_level=True`, which multiplies background and foreground.
- "background alone": the level multiplies the background and leaves the foreground mean.
- "no foreground of controls": a level, and isotype controls, where there are some, have no foreground.

Of held-out cells the table gives log p(x, y), importance-weighted over all latent variables, and its
lower bound in parts. "Proteins" is E[log p(y | z, t)] less the divergences of z and of t. Of all cells
it gives the correlation of the isotypes' residuals, and how much of the level of the background, of all
protein counts and of the isotypes the 15 nearest cells in z predict (R^2). Residuals are quantiles of
the count among counts drawn at a sample of the cell's latent variables, ties broken at random, as
normal quantiles.

A second table tells whether proteins are imputed as well with a level: every third protein is hidden in
40 % of 1,000 simulated cells, whose staining does not differ, and of 1,500 cells of PBMC10k
(`objectives.py`). Results go to benchmarks/results/staining.json and staining.md.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import anndata
import mudata
import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scipy import sparse
from scipy.special import ndtri
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import totalvi
from objectives import LEARNING_RATE, asked, hide
from result_files import write_results
from totalvi.data.io.features import are_controls
from totalvi.fit.minibatch import Minibatch
from totalvi.nn.coders import Decoded
from totalvi.nn.generative import GenerativeNetwork
from totalvi.nn.likelihoods import ProteinMixture
from totalvi.posterior.evidence import elbo_terms
from totalvi.posterior.question import Question

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
N_CELLS, N_GENES, N_NEIGHBOURS = 2000, 500, 15
N_DRAWS, N_COUNTS = 4, 200
IMPUTATION_SEEDS, IMPUTATION_EPOCHS = 2, 60
IMPUTED = {
    "marginal": "log p(x, y)",
    "imputed_r": "imputed: Pearson of log1p",
    "imputed_rmse": "RMSE of log1p",
    "coverage_50": "50 % intervals cover",
    "coverage_95": "95 % intervals cover",
}
SURELY_BACKGROUND = 30.0  # the logit of a probability that is 1 in float32
FIGURES = {
    "marginal": "log p(x, y)",
    "evidence": "proteins",
    "genes": "genes",
    "raw": "isotypes, r of log1p",
    "residual": "r of residuals",
    "z_background": "z: background level",
    "z_total": "z: protein total",
    "z_isotypes": "z: isotype total",
    "labels": "labels of neighbours",
    "scale": "mean s",
}


@contextmanager
def as_it_is(_is_control: np.ndarray) -> Iterator[None]:
    """Change nothing."""
    yield


@contextmanager
def background_alone(_is_control: np.ndarray) -> Iterator[None]:
    """Let the level leave the foreground mean as it is."""
    proteins: Callable[..., ProteinMixture] = GenerativeNetwork.proteins

    def with_fixed_foreground(
        self: GenerativeNetwork, decoded: Decoded, log_background: Tensor, context: Any,
        *, efficiency: bool = True,
    ) -> ProteinMixture:  # fmt: skip
        mixture = proteins(self, decoded, log_background, context, efficiency=efficiency)
        if not efficiency or context.log_level is None:
            return mixture
        return mixture._replace(factor=mixture.factor * (-context.log_level).exp())

    with patch.object(GenerativeNetwork, "proteins", with_fixed_foreground):
        yield


@contextmanager
def no_foreground_of_controls(is_control: np.ndarray) -> Iterator[None]:
    """Let isotype controls be background in every cell."""
    decode: Callable[..., Decoded] = GenerativeNetwork.decode
    where = torch.from_numpy(is_control)

    def without_foreground(self: GenerativeNetwork, *given: Any, **named: Any) -> Decoded:
        decoded = decode(self, *given, **named)
        sure = torch.full_like(decoded.background_logit, SURELY_BACKGROUND)
        logit = torch.where(where, sure, decoded.background_logit)
        return decoded._replace(background_logit=logit)

    with patch.object(GenerativeNetwork, "decode", without_foreground):
        yield


FORMS: dict[str, tuple[bool, Callable[[np.ndarray], Any]]] = {
    "none": (False, as_it_is),
    "level": (True, as_it_is),
    "background alone": (True, background_alone),
    "no foreground of controls": (True, no_foreground_of_controls),
}
WITH_ALL_SEEDS = ("none", "level")


# --------------------------------------------------------------------------------------- data


def variable_genes(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the positions of the `N_GENES` genes whose square roots vary most."""
    root = counts.sqrt()
    variance = np.asarray(counts.mean(axis=0) - np.square(root.mean(axis=0))).ravel()
    return np.sort(np.argsort(-variance, kind="stable")[:N_GENES])


def thinned(rna: AnnData, protein: AnnData, batch: Any = None, labels: Any = None) -> MuData:
    """Return at most `N_CELLS` cells and `N_GENES` genes, without proteins that few cells have."""
    some = np.sort(np.random.default_rng(0).permutation(rna.n_obs)[:N_CELLS])
    counts = sparse.csr_matrix(rna.X)[some].astype(np.float32)
    genes = variable_genes(counts)
    values = protein.X.toarray() if sparse.issparse(protein.X) else np.asarray(protein.X)
    values = values[some].astype(np.float32)
    kept = (values > 0).sum(axis=0) >= 10
    obs = pd.DataFrame(index=rna.obs_names[some])
    for name, column in (("batch", batch), ("label", labels)):
        obs[name] = "all" if column is None else np.asarray(column).astype(str)[some]
    return MuData({
        "rna": AnnData(counts[:, genes], obs=obs, var=rna.var[[]].iloc[genes].copy()),
        "prot": AnnData(values[:, kept], obs=obs, var=protein.var[[]].loc[kept].copy()),
    })  # fmt: skip


def eccite(folder: Path) -> MuData:
    rna = anndata.read_h5ad(folder / "eccite_pbmc_49proteins.h5ad")
    return thinned(rna, AnnData(rna.obsm["protein_counts"].astype(np.float32)))


def bmmc(folder: Path) -> MuData:
    both = mudata.read_h5mu(folder / "bmmc_134proteins.h5mu")
    obs = both["rna"].obs
    return thinned(both["rna"], both["prot"], obs["batch"], obs["cell_type"])


def wnn(folder: Path) -> MuData:
    """Return the sample of the mosaic that has both modalities."""
    mosaic = mudata.read_h5mu(folder / "wnn_pbmc_mosaic_224proteins.h5mu")
    both = mosaic[(mosaic.obs["batch"] == "p3_0").to_numpy()].copy()
    names = both["rna"].obs_names
    return thinned(both["rna"], both["adt"][names], labels=both.obs.loc[names, "celltype"])


def kotliarov(folder: Path) -> MuData:
    """Return cells whose RNA was not counted; two constant genes stand for it."""
    cells = anndata.read_h5ad(folder / "pbmc_87proteins_cells.h5ad")
    constant = AnnData(np.ones((cells.n_obs, 2), np.float32), obs=cells.obs[[]].copy())
    return thinned(constant, cells, cells.obs_names.str.extract(r"(ln\d)", expand=False))


def two_files(name: str) -> Callable[[Path], MuData]:
    def read(folder: Path) -> MuData:
        both = mudata.read_h5mu(folder / name)
        return thinned(both["rna"], both["prot"])

    return read


DATA_SETS: dict[str, Callable[[Path], MuData]] = {
    "eccite": eccite,
    "bmmc": bmmc,
    "wnn_p3": wnn,
    "pbmc_87": kotliarov,
    "reapseq": two_files("reapseq_pbmc3_48proteins.h5mu"),
    "pbmc10k": two_files("pbmc10k.h5mu"),
}

# ------------------------------------------------------------------------------------- figures


def evidence(question: Question) -> dict[str, float]:
    """Return the lower bound of log p(x, y) in nats a cell, and its parts."""

    def parts(batch: Minibatch) -> Tensor:
        total = torch.zeros(len(batch.cells), 3)
        for draw in question.draws(batch):
            terms = elbo_terms(question.network, batch, draw)
            log_prob = question.network.protein_log_prob(batch.y, draw.decoded, draw.context)
            level = draw.posterior.level_kl()
            costs = log_prob.sum(dim=1) - terms.kl_div_z - level
            total += torch.stack([-terms.reconst_loss_gene, costs, level], dim=1)
        return total / question.n_samples

    genes, proteins, level = map(float, question.gather("parts", parts).mean(axis=0))
    return {"genes": genes, "evidence": proteins, "level_nats": level}


def residuals(question: Question, columns: np.ndarray, seed: int) -> np.ndarray:
    """Return quantile residuals of some proteins, (draws, cells, proteins)."""
    network, rng = question.network, np.random.default_rng(seed)
    found: list[list[np.ndarray]] = [[] for _ in range(question.n_samples)]
    with question.minibatches("residuals") as batches:
        for batch in batches:
            y = batch.y[:, columns].numpy()
            for draw in question.draws(batch, genes=False):
                b = draw.decoded.background_mean
                mixture = network.proteins(draw.decoded, b, draw.context).take(columns)
                scale = draw.decoded.background_scale[:, columns].numpy()
                shape = N_COUNTS, *y.shape
                in_background = rng.random(shape) < mixture.background_probability().numpy()
                log_mean = np.where(
                    in_background, mixture.log_background.numpy(), mixture.log_foreground.numpy()
                )
                r = np.broadcast_to(mixture.log_r.exp().numpy(), shape)
                log_mean = np.minimum(log_mean + scale * rng.normal(size=shape), 20)
                counts = rng.poisson(np.exp(log_mean) * rng.standard_gamma(r) / r)
                ties = (counts == y).sum(axis=0) + 1
                place = (counts < y).sum(axis=0) + ties * rng.random(y.shape)
                found[draw.sample].append(ndtri(np.clip(place / (N_COUNTS + 1), 1e-4, 1 - 1e-4)))
    return np.stack([np.concatenate(parts) for parts in found])


def mean_correlation(values: np.ndarray) -> float:
    """Return the mean correlation of pairs of columns, over the leading axis as well."""
    upper = np.triu_indices(values.shape[-1], 1)
    return float(np.mean([np.corrcoef(part.T)[upper] for part in values]))


def background_level(counts: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Return each cell's mean of standardised log counts, weighted by P(count is background)."""
    logs, total = np.log1p(counts), probability.sum(axis=0)
    center = (probability * logs).sum(axis=0) / total
    scale = np.sqrt((probability * (logs - center) ** 2).sum(axis=0) / total)
    return np.asarray((probability * (logs - center) / scale).sum(axis=1) / probability.sum(axis=1))


def of_neighbours(z: np.ndarray, level: dict[str, np.ndarray], labels: np.ndarray) -> Any:
    """Yield what the nearest cells predict: R^2 of each level, and the share of labels."""
    nearest = NearestNeighbors(n_neighbors=N_NEIGHBOURS + 1).fit(z).kneighbors(z)[1][:, 1:]
    for name, values in level.items():
        error = values - values[nearest].mean(axis=1)
        yield f"z_{name}", float(1 - (error**2).mean() / values.var())
    codes, names = pd.factorize(labels)
    if len(names) > 1:
        votes = np.stack([(codes[nearest] == k).sum(axis=1) for k in range(len(names))])
        yield "labels", float((votes.argmax(axis=0) == codes).mean())


def controls_of(mdata: MuData) -> np.ndarray:
    """Return which proteins are isotype controls, (T,)."""
    return np.asarray(are_controls(mdata["prot"].var, None, "proteins"))


def measure(data: str, mdata: MuData, form: str, seed: int) -> dict[str, Any]:
    """Fit one form of the model, and return its figures."""
    is_control = controls_of(mdata)
    has_level, changed = FORMS[form]
    with changed(is_control):
        model = totalvi.Model(
            mdata, batch_key="batch", isotype_controls=(), staining_level=has_level, seed=seed
        )
        model.train(train_size=0.7, validation_size=0.1, progress=False)
        asked: dict[str, Any] = {"indices": model.split.test, "progress": False}
        row = {"data": data, "form": form, "seed": seed, "proteins": len(is_control)}
        row["marginal"] = model.get_marginal_ll(n_mc_samples=25, **asked)
        row |= evidence(model._question(None, model.split.test, 1024, False, 0, 10))
        foreground = model.get_protein_foreground_probability(
            n_samples=5, return_numpy=True, progress=False
        )
        counts = np.asarray(mdata["prot"].X)
        others = ~is_control
        level = {
            "background": background_level(counts[:, others], 1 + 1e-6 - foreground[:, others]),
            "total": np.log1p(counts.sum(axis=1)),
        }
        if is_control.sum() > 1:
            isotypes, columns = counts[:, is_control], np.flatnonzero(is_control)
            level["isotypes"] = np.log1p(isotypes.sum(axis=1))
            row["raw"] = mean_correlation(np.log1p(isotypes)[None])
            question = model._question(None, None, 1024, False, seed, N_DRAWS)
            row["residual"] = mean_correlation(residuals(question, columns, seed))
        z, labels = model.get_latent_representation(), mdata["rna"].obs["label"].to_numpy()
        row |= dict(of_neighbours(z, level, labels))
        if has_level:
            assert model.module.staining is not None
            row["scale"] = float(model.module.staining.log_scale.exp().mean())
            found = model.get_staining_level(progress=False).to_numpy()
            row |= {f"level_{k}": float(np.corrcoef(found, v)[0, 1]) for k, v in level.items()}
    return row


def with_hidden(folder: Path, seed: int) -> Iterator[tuple[str, MuData]]:
    """Yield cells in which proteins are to be hidden, by name."""
    yield "simulated", totalvi.simulate(1000, 300, 15, n_cell_types=5, seed=seed)
    real = totalvi.read(folder / "pbmc10k.h5mu")
    some = np.sort(np.random.default_rng(seed).permutation(real.n_obs)[:1500])
    rna, protein = real["rna"][some].copy(), real["prot"][some].copy()
    mean_root = np.asarray(rna.X.sqrt().mean(axis=0)).ravel()
    genes = np.sort(np.argsort(-mean_root)[:800])
    yield "pbmc10k", MuData({"rna": rna[:, genes].copy(), "prot": protein})


def imputation(data: str, mdata: MuData, has_level: bool, seed: int) -> dict[str, Any]:
    """Fit cells in some of which proteins are hidden, and return how well they are imputed."""
    partly, hidden = hide(mdata, seed)
    model = totalvi.Model(
        partly, batch_key="panel", isotype_controls=(), staining_level=has_level, seed=seed
    )
    model.train(
        IMPUTATION_EPOCHS, lr=LEARNING_RATE, train_size=0.8, validation_size=0.05, progress=False
    )
    return {"data": data, "seed": seed, "level": has_level} | asked(model, mdata, hidden)


def imputation_table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the figures of imputation as Markdown."""
    yield from ("", f"Hidden proteins; means of {IMPUTATION_SEEDS} seeds:", "")
    yield f"| data | staining level | {' | '.join(IMPUTED.values())} |"
    yield "|---" * (2 + len(IMPUTED)) + "|"
    for (data, has_level), of in pd.DataFrame(rows).groupby(["data", "level"], sort=False):
        values = [f"{of[k].mean():.{1 if k == 'marginal' else 3}f}" for k in IMPUTED]
        yield f"| {data} | {'level' if has_level else 'none'} | {' | '.join(values)} |"


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the results as Markdown."""
    frame = pd.DataFrame(rows)
    yield "Evidence in nats a held-out cell; means over seeds, and the difference from the fit of the"
    yield "same seed without a level, with its standard deviation over seeds. A form that has one seed"
    yield "compares by its difference alone. `benchmarks/staining.py` says what the columns are."
    for data, of_data in frame.groupby("data", sort=False):
        shown = {k: v for k, v in FIGURES.items() if k in of_data and of_data[k].notna().any()}
        yield from ("", f"**{data}**, {of_data['proteins'].iloc[0]} proteins", "")
        yield f"| staining level | seeds | {' | '.join(shown.values())} |"
        yield "|---" * (2 + len(shown)) + "|"
        for form, of_form in of_data.groupby("form", sort=False):
            values = [_number(of_form[k].mean(), k) for k in shown]
            yield f"| {form} | {len(of_form)} | {' | '.join(values)} |"
        for form in of_data["form"].unique()[1:]:
            without, having = _both(of_data, form)
            cells = []
            for k in shown:
                gain = having[k] - without[k]
                spread = f" ({gain.std():.2g})" if len(gain) > 1 else ""
                cells.append("" if gain.isna().all() else f"{_number(gain.mean(), k)}{spread}")
            yield f"| {form}, less none | {len(having)} | {' | '.join(cells)} |"
    yield from ("", "What a level adds, in percent of the proteins' evidence without:", "")
    yield "| data | log p(x, y) | proteins |"
    yield "|---|---|---|"
    for data, of_data in frame.groupby("data", sort=False):
        without, having = _both(of_data, "level")
        share = [
            f"{(100 * (having[k] - without[k]) / without['evidence'].abs()).mean():+.2f}"
            for k in ("marginal", "evidence")
        ]
        yield f"| {data} | {' | '.join(share)} |"


def _both(of_data: pd.DataFrame, form: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the fits without a level and of a form, of the seeds that have both, by seed."""
    without, having = (
        of_data[of_data["form"] == name].set_index("seed") for name in ("none", form)
    )
    common = without.index.intersection(having.index)
    return without.loc[common], having.loc[common]


def _number(value: float, figure: str) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.1f}" if figure in ("marginal", "evidence", "genes") else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=DATA)
    parser.add_argument("--data", nargs="*", default=list(DATA_SETS))
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    started, rows = time.process_time(), list[dict[str, Any]]()
    sets = {data: DATA_SETS[data](given.folder) for data in given.data}
    fits = [
        (seed, data, form)
        for seed in range(given.seeds)
        for data in sets
        for form in WITH_ALL_SEEDS
    ]
    fits += [(0, data, "background alone") for data in sets]
    with_controls = [data for data, mdata in sets.items() if controls_of(mdata).any()]
    fits += [(0, data, "no foreground of controls") for data in with_controls]
    for seed, data, form in fits:
        rows.append(measure(data, sets[data], form, seed))
        print(rows[-1], flush=True)
        write_results("staining", {"fits": rows}, list(table(rows)), started)
    hidden = [
        imputation(data, mdata, has_level, seed)
        for seed in range(IMPUTATION_SEEDS)
        for data, mdata in with_hidden(given.folder, seed)
        for has_level in (False, True)
    ]
    lines = [*table(rows), *imputation_table(hidden)]
    write_results("staining", {"fits": rows, "imputation": hidden}, lines, started)


if __name__ == "__main__":
    main()
