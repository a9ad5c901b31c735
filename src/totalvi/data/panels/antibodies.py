"""Give antibodies of several panels common names, and declare which a panel lacked."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Literal, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData
from scipy import sparse

from totalvi.data.columns import Columns, no_column, whole_names
from totalvi.data.counts import in_memory
from totalvi.data.find import find_counts, genes_and_proteins
from totalvi.data.io.modalities import known_protein_obsm_key, mudata_of
from totalvi.data.panels.antibody_names import Antibody, identify, spelling_key
from totalvi.errors import DataError, DataWarning, allowed, argument, did_you_mean, listed, setting

AntibodyNames = Mapping[str, str] | Mapping[str, Mapping[str, str]]
Unmeasured = Mapping[str, Sequence[str]] | Literal["zeros"]
Data = TypeVar("Data", MuData, AnnData)
_Key = tuple[str, str]  # data set, original name


def harmonise_antibodies(
    names: Mapping[str, Sequence[str]], antibody_names: AntibodyNames | None = None
) -> pd.DataFrame:
    """Find which antibodies of several data sets have the same target, and name them alike.

    Makers' tags (``_TotalSeqB``, ``ADT_``, ``A0046``, ``|CD3E|AHS0231|pAbO``), "anti-human", clones,
    case, punctuation and Greek letters are left out, and common names and gene symbols become CD
    designations (``IL7Ralpha``: CD127; ``PD-1``, ``PDCD1``: CD279; ``CD8``: CD8a; ``CD3E``: CD3).
    Chains, isoforms and family members stay apart (CD8a and CD8b; CD45, CD45RA and CD45RO), as do
    isotype controls of other classes or species, and antibodies whose names state different target
    species. A name whose parts disagree does not change.

    Two antibodies of one data set never get the same name. If they have the same target, their
    names get their clones if both are given. Otherwise they keep their original names, with a
    warning.

    Parameters
    ----------
    names
        Names of the antibodies of each data set.
    antibody_names
        Exact names that you choose: ``{original: harmonised}`` for all data sets that have the
        original, or ``{data set: {original: harmonised}}``.

    Returns
    -------
    DataFrame with a row for each antibody of each data set and the columns ``data_set``,
    ``original``, ``harmonised`` and ``why``.

    Raises
    ------
    ValueError
        If a data set has a name twice, or if ``antibody_names`` has an unknown name or gives one
        name to two antibodies of a data set.

    Examples
    --------
    >>> table = harmonise_antibodies(
    ...     {"lab": ["CD8a_TotalSeqB", "PD-1 (EH12)"], "atlas": ["CD8 (SK1)", "CD279"]}
    ... )
    >>> table[["data_set", "original", "harmonised"]].values.tolist()
    ... # doctest: +NORMALIZE_WHITESPACE
    [['lab', 'CD8a_TotalSeqB', 'CD8a'], ['lab', 'PD-1 (EH12)', 'CD279'],
     ['atlas', 'CD8 (SK1)', 'CD8a'], ['atlas', 'CD279', 'CD279']]
    """
    for data_set, originals in names.items():
        repeated = [name for name, n in Counter(originals).items() if n > 1]
        if repeated:
            raise ValueError(
                f'data set "{data_set}" has several antibodies named "{repeated[0]}"; make the '
                "names unique."
            )
    given = _given(names, antibody_names or {})
    found = {
        (data_set, original): identify(str(original))
        for data_set, originals in names.items()
        for original in originals
        if (data_set, original) not in given
    }
    chosen = {key: (name, "given in antibody_names") for key, name in given.items()}
    for members in _by_target(found).values():
        chosen |= _names_of_target(members)
    _keep_apart(chosen, given)
    rows = [
        (data_set, original, *chosen[data_set, original])
        for data_set, originals in names.items()
        for original in originals
    ]
    return pd.DataFrame(rows, columns=["data_set", "original", "harmonised", "why"])


def _given(names: Mapping[str, Sequence[str]], antibody_names: AntibodyNames) -> dict[_Key, str]:
    """Return the names that the user chose."""
    given: dict[_Key, str] = {}
    by_data_set: dict[str, Mapping[str, str]] = {}
    for key, value in antibody_names.items():
        if isinstance(value, Mapping):
            if key not in names:
                raise ValueError(
                    f'antibody_names holds the data set "{key}"; {did_you_mean(key, names)}.'
                )
            by_data_set[key] = value
            continue
        holders = [data_set for data_set, originals in names.items() if key in originals]
        if not holders:
            known = dict.fromkeys(name for originals in names.values() for name in originals)
            raise ValueError(f'antibody_names holds "{key}"; {did_you_mean(key, known)}.')
        given |= {(data_set, key): str(value) for data_set in holders}
    for data_set, renamed in by_data_set.items():
        for original, name in renamed.items():
            if original not in names[data_set]:
                raise ValueError(
                    f'antibody_names holds "{original}" of data set "{data_set}"; '
                    f"{did_you_mean(original, names[data_set])}."
                )
            given[data_set, original] = str(name)
    twice = [
        key for key, n in Counter((d, name) for (d, _), name in given.items()).items() if n > 1
    ]
    if twice:
        data_set, name = twice[0]
        originals = [o for (d, o), n in given.items() if (d, n) == (data_set, name)]
        raise ValueError(
            f'antibody_names gives the name "{name}" to {listed(originals)} of data set '
            f'"{data_set}"; give each of them a name of its own.'
        )
    return given


def _by_target(found: Mapping[_Key, Antibody]) -> dict[str, dict[_Key, Antibody]]:
    """Group antibodies by target, and by target species if their names state different ones."""
    groups: dict[str, dict[_Key, Antibody]] = {}
    for key, antibody in found.items():
        groups.setdefault(antibody.key, {})[key] = antibody
    result: dict[str, dict[_Key, Antibody]] = {}
    for target, members in groups.items():
        stated = [set(a.species.split("/")) for a in members.values() if a.species]
        differ = any(a.isdisjoint(b) for a, b in combinations(stated, 2))
        for key, antibody in members.items():
            if differ and antibody.species:
                antibody = antibody._replace(target=f"{antibody.target} ({antibody.species})")
                result.setdefault(f"{target} {antibody.species}", {})[key] = antibody
            else:
                result.setdefault(target, {})[key] = antibody
    return result


def _names_of_target(members: Mapping[_Key, Antibody]) -> dict[_Key, tuple[str, str]]:
    """Name the antibodies of one target, so that those of one data set have different names.

    If a data set has several, the clone is part of the name in all data sets, so that the same clone is
    the same protein everywhere.
    """
    target = next(iter(members.values())).target
    n_in = Counter(data_set for data_set, _ in members)
    if max(n_in.values()) == 1:
        return {key: (target, a.why or "as written") for key, a in members.items()}
    spelling: dict[str, str] = {}
    for antibody in members.values():
        spelling.setdefault(spelling_key(antibody.clone), antibody.clone)
    chosen: dict[_Key, tuple[str, str]] = {}
    for data_set in n_in:
        own = {original: a for (d, original), a in members.items() if d == data_set}
        clones = [spelling_key(antibody.clone) for antibody in own.values()]
        by_clone = all(clones) and len(set(clones)) == len(clones)
        for (original, antibody), clone in zip(own.items(), clones, strict=True):
            if by_clone:
                name, why = f"{target} ({spelling[clone]})", antibody.why
            elif len(own) == 1:
                name, why = target, antibody.why
            else:
                name, why = original, f"one of {len(own)} against {target} in this data set"
            chosen[data_set, original] = name, why or "as written"
        if len(own) > 1:
            _warn_of_several(data_set, target, {o: chosen[data_set, o][0] for o in own})
    return chosen


def _warn_of_several(data_set: str, target: str, names: Mapping[str, str]) -> None:
    first = next(iter(names))
    renamed = f", named {listed(names.values())}" if list(names) != list(names.values()) else ""
    warnings.warn(
        f'data set "{data_set}": {listed(names)} are all against {target} and stay {len(names)} '
        f"proteins{renamed}; to make one of them the {target} of other data sets, give "
        f'antibody_names={{"{data_set}": {{"{first}": "{target}"}}}}.',
        stacklevel=4,
    )


def _keep_apart(chosen: dict[_Key, tuple[str, str]], given: Mapping[_Key, str]) -> None:
    """Restore original names of antibodies as long as two of a data set have the same name."""
    while True:
        n_named = Counter((data_set, name) for (data_set, _), (name, _) in chosen.items())
        shared = [
            key
            for key, (name, _) in chosen.items()
            if n_named[key[0], name] > 1 and key not in given
        ]
        if not shared:
            return
        changed = [key for key in shared if chosen[key][0] != key[1]]
        if not changed:
            data_set, original = shared[0]
            raise ValueError(
                f'antibody_names gives the name "{original}" to another antibody of data set '
                f'"{data_set}", which has one of this name; give that one a name as well.'
            )
        for data_set, original in changed:
            name = chosen[data_set, original][0]
            chosen[data_set, original] = original, f"another of this data set is named {name}"


def declare_unmeasured(
    data: Data,
    unmeasured: Unmeasured,
    *,
    batch_key: str | None = None,
    rna_modality: str = "rna",
    protein_modality: str = "prot",
    protein_layer: str | None = None,
    protein_expression_obsm_key: str | None = None,
) -> Data:
    """Return the data with NaN as counts of proteins that a batch did not measure.

    `totalvi.Model` then leaves these proteins out there, and can impute them. Do not use zero
    instead: it would mean that the antibody was there and bound nothing.

    Parameters
    ----------
    data
        MuData or AnnData with raw counts, which is not changed; the result shares its RNA.
    unmeasured
        Names of the proteins by batch; their counts in this batch are replaced. Or "zeros": the
        proteins that are zero in all cells of a batch, as scvi-tools takes them.
    batch_key
        Column of ``obs`` with the batches, or with the antibody panels. None: all cells are one batch.
    rna_modality, protein_modality, protein_layer
        Where a MuData, or the layer, holds the counts.
    protein_expression_obsm_key
        The ``obsm`` entry of an AnnData that holds them. None: antibodies among its features, or an
        entry that is named as is usual.

    Raises
    ------
    DataError
        If the column is missing, or the counts are not found.
    ValueError
        If ``unmeasured`` has an unknown batch or protein.

    Examples
    --------
    >>> import totalvi
    >>> mdata = totalvi.simulate(n_cells=20, n_genes=30, n_proteins=4, n_batches=2, seed=1)
    >>> batch, protein = mdata.obs["batch"].iloc[0], mdata["prot"].var_names[2]
    >>> declared = totalvi.declare_unmeasured(mdata, {batch: [protein]}, batch_key="batch")
    >>> declared["prot"].to_df()[protein].isna().equals(declared.obs["batch"] == batch)
    True
    """
    key = protein_expression_obsm_key
    if isinstance(data, AnnData) and key is None:
        key = known_protein_obsm_key(data)
    where = Columns(
        rna_modality=rna_modality,
        protein_modality=protein_modality,
        protein_layer=protein_layer,
        protein_expression_obsm_key=key,
    )
    source = find_counts(data, where, on_disk=True)
    if batch_key is not None and batch_key not in source.obs:
        raise DataError(no_column("batch_key", batch_key, source.obs.columns))
    batch = np.full(len(source.obs), "all cells", dtype=object)
    if batch_key is not None:
        batch = source.obs[batch_key].astype(str).to_numpy(dtype=object)
    protein = source.protein.read().copy()
    lacking = np.zeros(protein.shape, dtype=bool)
    for name, columns in _columns_by_batch(unmeasured, batch, protein, source.protein_names):
        lacking[np.ix_(batch == name, columns)] = True
    if unmeasured == "zeros" and not lacking.any():
        where_zero = "" if batch_key is None else f" of a batch of obs[{batch_key!r}]"
        fix = "; name the batches with batch_key" if batch_key is None else ""
        warnings.warn(
            f"{setting('unmeasured', 'zeros')} declares nothing: no protein is zero in all cells"
            f"{where_zero}{fix}.",
            DataWarning,
            stacklevel=2,
        )
    protein[lacking] = np.nan
    if isinstance(data, AnnData):
        return _with_proteins(data, source.protein_names, protein, lacking, where)
    new = _sharing(data.mod[protein_modality])
    if protein_layer is None:
        new.X = protein
    else:
        new.layers[protein_layer] = protein
    declared = mudata_of(dict(data.mod) | {protein_modality: new}, data.obs.copy())
    declared.uns.update(data.uns)
    for name in data.obsm.keys() - data.mod.keys():
        declared.obsm[name] = data.obsm[name]
    return declared


def _sharing(adata: AnnData) -> AnnData:
    """Return an AnnData with the same matrices, in memory or on disk, and annotation of its own."""
    raw = adata.raw
    return AnnData(
        adata.X,
        obs=adata.obs.copy(),
        var=adata.var.copy(),
        layers=dict(adata.layers),
        obsm=dict(adata.obsm),
        varm=dict(adata.varm),
        obsp=dict(adata.obsp),
        varp=dict(adata.varp),
        uns=dict(adata.uns),
        raw=None if raw is None else {"X": raw.X, "var": raw.var},
    )


def _columns_by_batch(
    unmeasured: Unmeasured, batch: np.ndarray, protein: np.ndarray, names: pd.Index
) -> list[tuple[str, np.ndarray]]:
    """Return the positions of the proteins that each batch did not measure."""
    if isinstance(unmeasured, str):
        if unmeasured != "zeros":
            raise DataError(
                allowed("unmeasured", unmeasured, '"zeros", or names of proteins by batch')
            )
        batches = pd.unique(batch)
        absent = [~(protein[batch == name] > 0).any(axis=0) for name in batches]
        return [
            (str(name), np.flatnonzero(none)) for name, none in zip(batches, absent, strict=True)
        ]
    found = []
    for name, proteins in whole_names(unmeasured, pd.unique(batch), names):
        if str(name) not in batch:
            raise DataError(
                f"{argument('unmeasured')} holds {name!r}; {did_you_mean(str(name), pd.unique(batch))}."
            )
        if isinstance(proteins, str):
            raise DataError(allowed(f"unmeasured[{name!r}]", proteins, f'lists, as ["{proteins}"]'))
        for wanted in proteins:
            if wanted not in names:
                raise DataError(
                    f"{argument('unmeasured')} holds {wanted!r}; {did_you_mean(wanted, names)}."
                )
        found.append((name, names.get_indexer(pd.Index(list(proteins), dtype=object))))
    return found


def _with_proteins(
    adata: AnnData, names: pd.Index, protein: np.ndarray, lacking: np.ndarray, where: Columns
) -> AnnData:
    """Return a copy of an AnnData with other protein counts."""
    new = _sharing(adata)
    key = where.protein_expression_obsm_key
    if key is not None:
        new.obsm[key] = pd.DataFrame(protein, index=new.obs_names, columns=names)
        return new
    columns = np.flatnonzero(genes_and_proteins(adata.var)[1])
    values = in_memory(new.X if where.protein_layer is None else new.layers[where.protein_layer])
    if isinstance(values, np.ndarray):
        values = np.array(values, dtype=np.float32)
        values[:, columns] = protein
    else:
        stored, (rows, proteins) = sparse.coo_matrix(values), np.nonzero(lacking)
        is_lacking = sparse.csr_matrix(
            (np.ones(len(rows), bool), (rows, columns[proteins])), shape=stored.shape
        )
        kept = ~np.asarray(is_lacking[stored.row, stored.col]).ravel()
        counts = np.concatenate([stored.data[kept], np.full(len(rows), np.nan)]).astype(np.float32)
        places = (
            np.concatenate([stored.row[kept], rows]),
            np.concatenate([stored.col[kept], columns[proteins]]),
        )
        values = sparse.csr_matrix((counts, places), shape=stored.shape)
    if where.protein_layer is None:
        new.X = values
    else:
        new.layers[where.protein_layer] = values
    return new
