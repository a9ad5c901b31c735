"""The steps of a run after its fit: each reads its inputs from `Work`, and adds its results."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mudata
import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.counts import Counts, CountsInMemory, DenseOnDisk, SparseOnDisk, lies_on_disk
from totalvi.model import Model
from totalvi.run.clusters import Clusters, batch_mixing, cells_to_map, cluster_all
from totalvi.run.compare_samples import conditions_of_run
from totalvi.run.count_splitting import held_out_counts
from totalvi.run.doublet_tables import doublets_of_run, read_doublets
from totalvi.run.folder import CLUSTER_COLUMN, DENOISED_LIBRARY_SIZE, RESULTS
from totalvi.run.hashtag_samples import hashtags_of_run, read_hashtags
from totalvi.run.named_cells import POPULATION, columns_of_cells, samples_of
from totalvi.run.record import RunOptions, Step
from totalvi.run.results import (
    POSTERIOR_SAMPLES,
    Estimates,
    ResultsFile,
    antibody_warnings,
    draw_figures,
    make_tables,
    posterior_samples,
)
from totalvi.run.suiting_hierarchy import compare_populations, populations_of_run
from totalvi.run.table_files import read_protein_warnings, write_tables
from totalvi.run.tables import background_tables, expression_by_group

CHECKED_CELLS = 1000  # of the predictive checks, which draw all counts of each again
LARGEST_DENOISED_RNA = 2**31  # bytes of the layer, which readers of results.h5mu read whole


@dataclass
class Work:
    """A fitted model, its cells, and the results of the steps after the fit so far.

    Parameters
    ----------
    model
        Fitted.
    data
        Its cells: in memory, or opened with their counts left on disk.
    options
        What the run was asked.
    folder
        Folder of the run.
    file
        Takes what is known of each cell.

    Attributes
    ----------
    latent
        Latent representation of all cells.
    clusters
        Clusters and map of all cells.
    denoised_protein, foreground_probability
        Of the cells shown.
    protein_warnings
        The fault of each antibody, or "".
    hashtags, doublets
        Of all cells; None: they were not told.
    warnings
        Of the steps, for the record.
    """

    model: Model
    data: MuData
    options: RunOptions
    folder: Path
    file: ResultsFile
    latent: np.ndarray = field(init=False)
    clusters: Clusters | None = field(init=False, default=None)
    denoised_protein: np.ndarray = field(init=False)
    foreground_probability: np.ndarray = field(init=False)
    protein_warnings: list[str] = field(init=False)
    hashtags: pd.DataFrame | None = field(init=False, default=None)
    doublets: pd.DataFrame | None = field(init=False, default=None)
    warnings: list[str] = field(init=False, default_factory=list)

    @cached_property
    def batch(self) -> pd.Series | None:
        """The batch of each cell."""
        return None if (key := self.options.keys.batch_key) is None else self.data.obs[key]

    @property
    def samples(self) -> pd.Series | None:
        """The sample of each cell; by default its batch, and the sample of its hashtag."""
        obs, keys = self.data.obs, self.options.keys
        found = obs if self.hashtags is None else obs.assign(**self.hashtags)
        return samples_of(found, self.options.sample_key, keys.batch_key, self.hashtags is not None)

    @cached_property
    def sample(self) -> np.ndarray:
        """Positions of the cells that tables and figures show: all, unless there are very many."""
        return cells_to_map(self.batch, self.data.n_obs)

    @cached_property
    def shown(self) -> MuData:
        """The cells of the sample, in memory."""
        everyone = len(self.sample) == self.data.n_obs
        if everyone and not lies_on_disk(self.data["rna"].X):
            return self.data
        parts = {}
        for name in ("rna", "prot"):
            part = self.data[name]
            counts = _rows(part.X, name, dense=name == "prot").rows(self.sample)
            parts[name] = AnnData(counts, part.obs.iloc[self.sample], part.var)
        with mudata.set_options(pull_on_update=False):
            some = MuData(parts)
            some.obs = self.data.obs.iloc[self.sample].copy()
        return some

    @property
    def estimates(self) -> Estimates:
        """Estimates of the model for the cells shown."""
        return Estimates(
            self.latent[self.sample], self.denoised_protein, self.foreground_probability
        )

    @property
    def clusters_shown(self) -> Clusters:
        """Clusters and map of the cells shown."""
        assert self.clusters is not None
        return Clusters(self.clusters.labels[self.sample], self.clusters.umap[self.sample])


def _rows(stored: Any, where: str, *, dense: bool) -> Counts[Any]:
    """Return counts whose rows can be taken, in memory or on disk."""
    on_disk = DenseOnDisk if dense else SparseOnDisk
    return on_disk(stored, where) if lies_on_disk(stored) else CountsInMemory(stored)


def write_counts(work: Work) -> None:
    """Create the results file; a store on disk got its counts before the fit."""
    if not work.file.on_disk:
        work.file.write_counts(work.data)


def take_latent(work: Work) -> None:
    """Compute the latent representation, and staining levels if asked for."""
    work.latent = work.model.get_latent_representation(progress=work.options.writing.progress)
    work.file.add_obsm("X_totalvi", work.latent)
    if work.options.staining_level:
        levels = work.model.get_staining_level(progress=False)
        work.file.add_obs("staining_level", levels.to_numpy())


def load_latent(work: Work) -> None:
    """Read the latent representation."""
    work.latent = work.file.read("obsm/X_totalvi")


def denoise(work: Work) -> None:
    """Write denoised counts and foreground probabilities as layers, and keep those of proteins."""
    n_cells, n_genes = work.data["rna"].shape
    shape = _, n_proteins = work.data["prot"].shape
    asked: dict[str, Any] = {
        "library_size": DENOISED_LIBRARY_SIZE,
        "n_samples": posterior_samples(n_cells),
        "progress": work.options.writing.progress,
    }
    if work.file.on_disk:
        with (
            work.file.new_layer("prot", "denoised", n_proteins) as protein,
            work.file.new_layer("prot", "foreground_probability", n_proteins) as foreground,
        ):
            work.model._write_denoised(None, protein, foreground, **asked)
        load_denoised(work)
        return
    protein, foreground = np.empty(shape, np.float32), np.empty(shape, np.float32)
    if work.file.is_there and 4 * n_cells * n_genes <= LARGEST_DENOISED_RNA:
        with work.file.new_layer("rna", "denoised", n_genes) as rna:
            work.model._write_denoised(rna, protein, foreground, **asked)
    else:
        work.model._write_denoised(None, protein, foreground, **asked)
        if work.file.is_there:
            work.warnings.append(
                f"denoised RNA of {n_cells:,} cells and {n_genes:,} genes is not in {RESULTS}, which "
                "would be too large to read; `totalvi denoise` writes it to a .zarr store."
            )
    for name, values in (("denoised", protein), ("foreground_probability", foreground)):
        work.file.add_layer("prot", name, values)
    work.denoised_protein = protein[work.sample]
    work.foreground_probability = foreground[work.sample]


def load_denoised(work: Work) -> None:
    """Read the layers of the proteins of the cells shown."""
    work.denoised_protein = work.file.read_rows("mod/prot/layers/denoised", work.sample)
    work.foreground_probability = work.file.read_rows(
        "mod/prot/layers/foreground_probability", work.sample
    )


def cluster(work: Work) -> None:
    """Cluster and map the cells."""
    options = work.options
    found = cluster_all(work.latent, work.sample, resolution=options.resolution, seed=options.seed)
    _set_clusters(work, found)
    assert work.clusters is not None
    work.file.add_obs(CLUSTER_COLUMN, work.clusters.labels)
    work.file.add_obsm("X_umap", work.clusters.umap)


def load_clusters(work: Work) -> None:
    """Read clusters and map."""
    labels = pd.Categorical(work.file.read(f"obs/{CLUSTER_COLUMN}"))
    _set_clusters(work, Clusters(labels, work.file.read("obsm/X_umap")))


def _set_clusters(work: Work, clusters: Clusters) -> None:
    """Store the clusters, also where the model finds columns to compare by."""
    work.clusters = clusters
    work.shown.obs[CLUSTER_COLUMN] = work.clusters_shown.labels


def tell_hashtags(work: Work) -> None:
    """Tell the sample of each cell by its hashtags, if there are any."""
    work.hashtags, warnings = hashtags_of_run(work.data, work.batch, work.file)
    work.warnings += warnings


def load_hashtags(work: Work) -> None:
    """Read what hashtags say, if there are any."""
    work.hashtags = read_hashtags(work.file, work.data.obs_names)


def tell_doublets(work: Work) -> None:
    """Give each cell its probability of being a doublet."""
    assert work.clusters is not None
    groups, rate = (work.samples, work.clusters.labels), work.options.doublet_rate
    work.doublets = doublets_of_run(work.model, work.hashtags, groups, rate, work.folder, work.file)


def load_doublets(work: Work) -> None:
    """Read the columns of doublets, if there are any."""
    work.doublets = read_doublets(work.file, work.data.obs_names)


def tabulate(work: Work) -> None:
    """Write the tables of cells, proteins, clusters, markers and epochs."""
    assert work.clusters is not None
    totals = [
        np.concatenate([_total(block) for _, block in _rows(part.X, name, dense=dense).blocks()])
        for name, part, dense in (
            ("rna", work.data["rna"], False),
            ("prot", work.data["prot"], True),
        )
    ]
    keys = work.options.keys
    tables = make_tables(
        work.data.obs_names, work.batch, work.clusters, work.latent, totals,
        work.shown, work.estimates, work.clusters_shown, keys.batch_key, work.model.history,
        held_out_counts(work.data, work.sample) if work.options.split_counts else None,
    )  # fmt: skip
    for told in (work.hashtags, work.doublets):
        tables["cells"] = tables["cells"] if told is None else tables["cells"].join(told)
    more = columns_of_cells(work.file, work.folder, work.options.staining_level)
    tables["cells"] = tables["cells"].assign(**more)
    write_tables(tables, work.folder / "tables")
    work.protein_warnings = list(tables["proteins"]["warning"])
    work.warnings += antibody_warnings(tables["proteins"])


def _total(counts: Any) -> np.ndarray:
    measured = np.nan_to_num(counts) if isinstance(counts, np.ndarray) else counts
    return np.asarray(measured.sum(axis=1)).reshape(-1, 1)


def load_protein_warnings(work: Work) -> None:
    """Read the warnings about antibodies from the table of proteins."""
    work.protein_warnings = read_protein_warnings(work.folder / "tables")


def tabulate_background(work: Work) -> None:
    """Write the tables of empty droplets and isotype controls, if there are any."""
    tables, warnings = background_tables(work.model, work.data)
    write_tables(tables, work.folder / "tables")
    work.warnings += warnings


def compare_clusters(work: Work) -> None:
    """Compare each cluster, and each named population, with the other cells, if there are several."""
    split = work.options.split_counts
    cells = held_out_counts(work.data, work.sample) if split else work.shown
    labels = work.clusters_shown.labels
    table = expression_by_group(work.model, cells, labels, is_held_out=split)
    if table is not None:
        write_tables({"differential_expression": table}, work.folder / "tables")
    named = columns_of_cells(work.file, work.folder, staining_level=False)
    if named:
        population = np.asarray(named[POPULATION]).astype(str)[work.sample]
        tables = compare_populations(work.model, cells, population, is_held_out=split)
        write_tables(tables, work.folder / "tables")


def compare_conditions(work: Work) -> None:
    """Compare conditions over samples within each cluster, if the run has their columns."""
    data = None if work.shown is work.data else work.shown
    work.warnings += conditions_of_run(work.model, data, work.options, work.folder)


def name_populations(work: Work) -> None:
    """Name the populations of all cells by the gates of a hierarchy, if the panel tells any."""
    assert work.clusters is not None
    work.warnings += populations_of_run(
        work.model, work.samples, work.clusters.labels, work.options, work.folder, work.file
    )


def check_predictions(work: Work) -> None:
    """Draw counts from the model for at most 1,000 random cells, and compare."""
    n_cells = work.data.n_obs
    cells = np.sort(np.random.default_rng(work.options.seed).permutation(n_cells)[:CHECKED_CELLS])
    check = work.model.posterior_predictive_check(
        indices=cells, n_samples=POSTERIOR_SAMPLES, progress=False
    )
    tables = {"predictive_checks": check.table, "predictive_calibration": check.calibration}
    write_tables(tables, work.folder / "tables")


def measure_mixing(work: Work) -> None:
    """Write how well the batches mix, if there are any."""
    if work.batch is not None:
        mixing = batch_mixing(work.latent, work.batch, work.options.seed)
        write_tables({"batches": mixing}, work.folder / "tables")


def draw(work: Work) -> None:
    """Draw the figures."""
    keys = work.options.keys
    draw_figures(
        work.shown,
        work.estimates,
        work.clusters_shown,
        work.protein_warnings,
        work.model.history,
        work.folder / "figures",
        batch_key=keys.batch_key,
        labels_key=keys.labels_key,
        best_epoch=work.model.fit_summary["best_epoch"],
    )


AFTER_FIT: tuple[Step[Work], ...] = (
    Step("results file", write_counts),
    Step("latent space", take_latent, load=load_latent),
    Step("denoised counts", denoise, load=load_denoised),
    Step("clusters and UMAP", cluster, ("latent space",), load_clusters),
    Step("hashtags", tell_hashtags, load=load_hashtags),
    Step("doublets", tell_doublets, ("clusters and UMAP",), load_doublets),
    Step("populations", name_populations, ("clusters and UMAP",)),
    Step(
        "tables",
        tabulate,
        ("latent space", "denoised counts", "clusters and UMAP"),
        load_protein_warnings,
    ),
    Step("background tables", tabulate_background),
    Step("differential expression", compare_clusters, ("clusters and UMAP",)),
    Step("predictive checks", check_predictions),
    Step("batch mixing", measure_mixing, ("latent space",)),
    Step("figures", draw, ("tables",)),
    Step("conditions over samples", compare_conditions, ("clusters and UMAP",)),
)
