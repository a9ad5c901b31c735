"""Declare which proteins a batch did not measure, where the counts hold zeros in place of NaN."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.find import find_counts
from totalvi.data.finding import did_you_mean
from totalvi.data.io.modalities import mudata_of
from totalvi.errors import DataError


def declare_unmeasured(
    data: MuData,
    unmeasured: Mapping[str, Sequence[str]],
    *,
    batch_key: str,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
) -> MuData:
    """Return the data with NaN in place of the counts of proteins that a batch did not measure.

    `totalvi.Model` then leaves these proteins out there, and can impute them. Zero is no substitute:
    it would mean that the antibody was there and bound nothing.

    Parameters
    ----------
    data
        MuData with raw counts, which is not changed; the result shares its RNA.
    unmeasured
        Names of the proteins by batch; whatever counts they have there are replaced.
    batch_key
        Column of ``obs`` with the batches, or with the antibody panels.
    rna_modality, protein_modality
        Names of the modalities.

    Raises
    ------
    DataError
        If the column is missing, or the counts are not found.
    ValueError
        If ``unmeasured`` names a batch or protein that is not there.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=20, n_genes=30, n_proteins=4, n_batches=2, seed=1)
    >>> batch, protein = mdata.obs["batch"].iloc[0], mdata["prot"].var_names[2]
    >>> declared = totalvi.declare_unmeasured(mdata, {batch: [protein]}, batch_key="batch")
    >>> declared["prot"].to_df()[protein].isna().equals(declared.obs["batch"] == batch)
    True
    """
    where = Columns(rna_modality=rna_modality, protein_modality=protein_modality)
    source = find_counts(data, where)
    if batch_key not in source.obs:
        raise DataError(
            f'batch_key: no column "{batch_key}" in obs, {did_you_mean(batch_key, source.obs.columns)}'
        )
    batch = source.obs[batch_key].astype(str).to_numpy()
    protein = source.protein.read()  # a copy of the user's
    for name, proteins in unmeasured.items():
        if str(name) not in batch:
            raise ValueError(
                f"unmeasured holds {name!r}; {did_you_mean(str(name), pd.unique(batch))}."
            )
        if isinstance(proteins, str):
            raise ValueError(
                f'unmeasured[{name!r}] is {proteins!r}; allowed is a list: give ["{proteins}"].'
            )
        for wanted in proteins:
            if wanted not in source.protein_names:
                raise ValueError(
                    f"unmeasured holds {wanted!r}; {did_you_mean(wanted, source.protein_names)}."
                )
        columns = source.protein_names.get_indexer(pd.Index(list(proteins), dtype=object))
        protein[np.ix_(batch == str(name), columns)] = np.nan
    new = data.mod[protein_modality].copy()
    new.X = protein
    declared = mudata_of(dict(data.mod) | {protein_modality: new}, data.obs.copy())
    declared.uns.update(data.uns)
    for name in data.obsm.keys() - data.mod.keys():
        declared.obsm[name] = data.obsm[name]
    return declared
