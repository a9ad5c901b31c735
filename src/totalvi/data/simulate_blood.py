"""Simulate human blood: cell types with the markers of a table, donors and patients, doublets."""

from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.io.modalities import mudata_of
from totalvi.data.simulate_draws import (
    N_PROGRAMS,
    Cells,
    Parameters,
    cell_names,
    draw_protein,
    draw_rna,
)
from totalvi.errors import DataError, setting

TABLES = Path(__file__).with_name("simulated_blood")
DONORS = tuple(f"donor_{letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CONDITIONS = ("healthy", "patient")
DOUBLET = "doublet"
_MEDIAN_LIBRARY_SIZE = 250.0


def simulate_blood(
    n_cells: int = 2000,
    *,
    n_donors: int = 2,
    n_patients: int = 0,
    share_of_doublets: float = 0.05,
    seed: int = 0,
) -> MuData:
    """Simulate the blood of donors with 500 genes and 20 antibodies of real names.

    The counts follow the same distributions as those of `totalvi.simulate`. Cell types, and the levels
    of their proteins and genes, are in the tables of ``simulated_blood``, next to this file. The
    antibodies include an isotype control and one that failed, against CD197 (CCR7). Patients have other
    shares of some cell types, and other levels of a few proteins and genes; ``patients.tsv`` lists all.

    Parameters
    ----------
    n_cells
        Number of droplets with cells.
    n_donors
        Number of donors, each with as many droplets; at most 26.
    n_patients
        How many of the donors are patients: the last of them.
    share_of_doublets
        Share of droplets with two cells of a donor, whose counts are added.
    seed
        The same seed and arguments give the same counts.

    Returns
    -------
    MuData
        ``rna`` (CSR) and ``prot`` (dense), both float32. Truth: ``obs["donor"]``,
        ``obs["cell_type"]`` (names of populations of the hierarchy "blood", or "doublet"),
        ``obs["doublet"]``, and ``obs["doublet_of"]``, the types of its two cells. With patients,
        ``obs["condition"]`` is "healthy" or "patient".

    Raises
    ------
    DataError
        If an argument is out of range.

    Examples
    --------
    >>> import totalvi
    >>> blood = totalvi.simulate_blood(200, n_donors=4, n_patients=2, share_of_doublets=0.1)
    >>> blood["prot"].var_names[:4].tolist(), int(blood.obs["doublet"].sum())
    (['CD3', 'CD4', 'CD8', 'CD19'], 20)
    >>> blood.obs["condition"].value_counts().to_dict()
    {'healthy': 100, 'patient': 100}
    """
    if n_cells < 1:
        raise DataError(f"{setting('n_cells', n_cells)} is out of range; give 1 or more.")
    if not 1 <= n_donors <= len(DONORS):
        raise DataError(
            f"{setting('n_donors', n_donors)} is out of range; give 1 to {len(DONORS)}."
        )
    if not 0 <= n_patients <= n_donors:
        raise DataError(
            f"n_patients={n_patients} is out of range; give 0 to {n_donors}, the donors."
        )
    if not 0 <= share_of_doublets <= 1:
        raise DataError(f"share_of_doublets={share_of_doublets} is out of range; give 0 to 1.")
    rng = np.random.default_rng(seed)
    table = pd.read_csv(TABLES / "cell_types.tsv", sep="\t", comment="#", na_values=".")
    types = table.columns[3:]
    is_patient = np.arange(n_donors) >= n_donors - n_patients  # (S,)
    parameters = _of_patients_too(_parameters(rng, table, n_donors), table)
    shares = parameters.type_proportions.reshape(2, -1)[is_patient.astype(int)]  # (S, K)
    proportions = np.stack([rng.dirichlet(400 * row / row.sum()) for row in shares])
    proportions = np.hstack([proportions * ~is_patient[:, None], proportions * is_patient[:, None]])
    donors = rng.permutation(np.arange(n_cells) % n_donors)
    cells = _draw_cells(rng, parameters, donors, proportions)
    rna, prot = _draw_counts(rng, parameters, cells, table)
    n_doublets = round(share_of_doublets * n_cells)
    doublets = np.sort(rng.choice(n_cells, n_doublets, replace=False))
    names = np.tile(types.to_numpy(), 2)  # of the healthy, and of patients
    cell_type = names[cells.cell_type].astype(object)
    doublet_of = np.full(n_cells, "", dtype=object)
    if n_doublets:
        seconds = _draw_cells(rng, parameters, donors[doublets], proportions)
        second_rna, second_prot = _draw_counts(rng, parameters, seconds, table)
        prot.X[doublets] += second_prot.X
        chosen = sparse.csr_matrix(
            (np.ones(n_doublets, np.float32), (doublets, np.arange(n_doublets))),
            shape=(n_cells, n_doublets),
        )
        rna.X = sparse.csr_matrix(rna.X + chosen @ second_rna.X)
        pairs = zip(cell_type[doublets], names[seconds.cell_type], strict=True)
        doublet_of[doublets] = [" + ".join(sorted(pair)) for pair in pairs]
        cell_type[doublets] = DOUBLET
    rna.obs_names = prot.obs_names = cell_names(n_cells)
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical.from_codes(donors, pd.Index(DONORS[:n_donors])),
            "cell_type": pd.Categorical(cell_type, [*types, DOUBLET]),
            "doublet": cell_type == DOUBLET,
            "doublet_of": pd.Categorical(doublet_of),
        },
        index=rna.obs_names,
    )
    if n_patients:
        codes = is_patient[donors].astype(np.int64)
        condition = pd.Categorical.from_codes(codes, pd.Index(CONDITIONS))
        obs.insert(1, "condition", pd.Series(condition, index=obs.index))
    blood = mudata_of({"rna": rna, "prot": prot}, obs)
    blood.uns["title"] = "Simulated blood"
    return blood


def _parameters(rng: np.random.Generator, table: pd.DataFrame, n_donors: int) -> Parameters:
    """Return the parameters of the table's cell types; what it does not say is drawn."""
    rows = {str(kind): part for kind, part in table.groupby("kind", sort=False)}
    levels = {kind: part.iloc[:, 3:].to_numpy(float).T for kind, part in rows.items()}
    factor = levels["protein"]  # (K, T), NaN where a type lacks a protein
    carried = ~np.isnan(factor)
    n_types, n_proteins = factor.shape
    n_markers, n_others = len(rows["gene"]), len(_other_genes())
    n_genes = n_markers + n_others
    fold = np.nan_to_num(levels["gene"], nan=1.0)
    log_markers = np.log(rows["gene"]["typical"].to_numpy(float) * fold)
    log_others = rng.normal(0.0, 1.6, n_others) + rng.normal(0.0, 0.1, (n_types, n_others))
    log_background = np.log(rows["protein"]["typical"].to_numpy(float))
    return Parameters(
        type_proportions=levels["share"].ravel() / levels["share"].sum(),
        marker_of=np.pad(fold > 1, ((0, 0), (0, n_others))),
        log_expression=np.hstack([log_markers, log_others]),
        gene_programs=rng.normal(0.0, 0.2, (N_PROGRAMS, n_genes)) * (rng.random(n_genes) < 0.3),
        log_batch_effect=rng.normal(0.0, 0.1, (n_donors, n_genes)),
        gene_inverse_dispersion=np.exp(rng.normal(1.5, 0.5, n_genes)),
        log_library_mean=np.log(_MEDIAN_LIBRARY_SIZE) + rng.normal(0.0, 0.1, n_donors),
        log_library_sd=np.full(n_donors, 0.35),
        is_control=table.loc[table["kind"] == "protein", "name"].str.contains("control").to_numpy(),
        log_background_mean=log_background + rng.normal(0.0, 0.15, (n_donors, n_proteins)),
        log_background_sd=rng.uniform(0.3, 0.45, n_proteins),
        foreground_factor=np.nan_to_num(factor, nan=1.0),
        protein_programs=rng.normal(0.0, 0.12, (N_PROGRAMS, n_proteins)),
        foreground_probability=np.where(carried, 0.985, 0.005 * carried.any(axis=0)),
        protein_inverse_dispersion=np.exp(rng.normal(2.3, 0.3, n_proteins)),
    )


def _of_patients_too(p: Parameters, table: pd.DataFrame) -> Parameters:
    """Return parameters with each cell type twice: as in the healthy, then as in patients."""
    times = pd.read_csv(TABLES / "patients.tsv", sep="\t", comment="#")
    types = table.columns[3:]
    names = {str(kind): pd.Index(part["name"]) for kind, part in table.groupby("kind")}
    share, factor = p.type_proportions.copy(), p.foreground_factor.copy()
    log_expression = p.log_expression.copy()
    for kind, name, cell_type, ratio in times.to_numpy(object):
        k = types.get_loc(cell_type)
        if kind == "share":
            share[k] *= ratio
        elif kind == "protein":
            factor[k, names[kind].get_loc(name)] *= ratio
        else:
            log_expression[k, names[kind].get_loc(name)] += np.log(ratio)
    return p._replace(
        type_proportions=np.concatenate([p.type_proportions, share]),
        marker_of=np.tile(p.marker_of, (2, 1)),
        log_expression=np.vstack([p.log_expression, log_expression]),
        foreground_factor=np.vstack([p.foreground_factor, factor]),
        foreground_probability=np.tile(p.foreground_probability, (2, 1)),
    )


def _other_genes() -> list[str]:
    lines = (TABLES / "other_genes.txt").read_text(encoding="utf-8").splitlines()
    return " ".join(line for line in lines if not line.startswith("#")).split()


def _draw_cells(
    rng: np.random.Generator, p: Parameters, donors: np.ndarray, proportions: np.ndarray
) -> Cells:
    """Draw cells of donors, who have the cell types in proportions of their own, (S, K)."""
    ends = proportions.cumsum(axis=1)[donors, :-1]
    return Cells(
        cell_type=(rng.random((len(donors), 1)) > ends).sum(axis=1),
        batch=donors,
        programs=rng.normal(size=(len(donors), N_PROGRAMS)).astype(np.float32),
        library_size=np.exp(rng.normal(p.log_library_mean[donors], p.log_library_sd[donors])),
    )


def _draw_counts(
    rng: np.random.Generator, p: Parameters, cells: Cells, table: pd.DataFrame
) -> tuple[AnnData, AnnData]:
    """Draw the counts of genes and of proteins, without the parameters that a user would not have."""
    names = {str(kind): part["name"].tolist() for kind, part in table.groupby("kind")}
    rna = draw_rna(rng, p, cells, store_truth=False).X
    prot = draw_protein(rng, p, cells).X
    return (
        AnnData(rna, var=pd.DataFrame(index=names["gene"] + _other_genes())),
        AnnData(prot, var=pd.DataFrame(index=names["protein"])),
    )
