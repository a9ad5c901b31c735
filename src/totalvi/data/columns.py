"""Which column, modality or layer of the user's object is what."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.errors import DataError, argument, did_you_mean


@dataclass(frozen=True)
class Columns:
    """Places of the counts and the annotation of cells in a MuData or AnnData.

    The fields are arguments of `totalvi.Model`, whose docstring explains them.
    """

    rna_modality: str = "rna"
    protein_modality: str = "prot"
    rna_layer: str | None = None
    protein_layer: str | None = None
    protein_expression_obsm_key: str | None = None
    batch_key: str | None = None
    panel_key: str | None = None
    labels_key: str | None = None
    size_factor_key: str | None = None
    categorical_covariate_keys: tuple[str, ...] = ()
    continuous_covariate_keys: tuple[str, ...] = ()
    protein_names_uns_key: str | None = None
    allow_fractional: bool = False
    isotype_controls: tuple[str, ...] | None = None
    unlabeled_category: str | None = None

    @property
    def network_labels_key(self) -> str | None:
        """Column with the labels that the network takes; None where only some are known."""
        return self.labels_key if self.unlabeled_category is None else None

    @property
    def group_key(self) -> str | None:
        """Column with the panels, or else the batches: cells that measured the same proteins."""
        return self.batch_key if self.panel_key is None else self.panel_key


def same_number(one: object, other: object) -> bool:
    """Whether both are the same number, as 1 is 1.0 in a column with gaps.

    Examples
    --------
    >>> same_number("1.0", 1), same_number("a", "a")
    (True, False)
    """
    try:
        return float(str(one)) == float(str(other))
    except ValueError:
        return False


def whole_names(
    unmeasured: Mapping[str, Sequence[str]], batches: np.ndarray, names: pd.Index
) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield each batch and its proteins, with names whole that a command line cut at "=" and ",".

    Examples
    --------
    >>> cut = {"a": ["b=HLA-A", "B", "CD3"]}
    >>> list(whole_names(cut, np.array(["a=b"], object), pd.Index(["HLA-A,B", "CD3"])))
    [('a=b', ['HLA-A,B', 'CD3'])]
    """
    for batch, proteins in unmeasured.items():
        name = next((str(one) for one in batches if same_number(one, batch)), str(batch))
        if isinstance(proteins, str) or (name in batches and all(one in names for one in proteins)):
            yield name, proteins
            continue
        text = f"{name}={','.join(map(str, proteins))}"
        name = max((one for one in batches if text.startswith(f"{one}=")), key=len, default=name)
        parts, whole = text[len(name) + 1 :].split(","), list[str]()
        while parts:
            lengths = (n for n in range(len(parts), 0, -1) if ",".join(parts[:n]) in names)
            n = next(lengths, 1)
            whole.append(",".join(parts[:n]))
            parts = parts[n:]
        yield name, whole


def column(name: str, key: str) -> str:
    """Return the words for the column ``key`` of ``obs``, which the argument ``name`` names.

    Examples
    --------
    >>> column("batch_key", "donor")
    'batch_key: obs["donor"]'
    """
    return f'{argument(name)}: obs["{key}"]'


def no_column(name: str, key: str, known: Iterable[str]) -> str:
    """Return the message that ``obs`` lacks the column ``key`` that the argument ``name`` names.

    Examples
    --------
    >>> no_column("batch_key", "sample", ["donor"])
    'batch_key: no column "sample" in obs; there are: "donor".'
    """
    return f'{argument(name)}: no column "{key}" in obs; {did_you_mean(str(key), known)}.'


class CellGroups(NamedTuple):
    """The group of each cell: its panel or batch, or one group of all cells.

    Attributes
    ----------
    word
        "panel", "batch" or "data set".
    codes
        Position in ``names`` of each cell's group, shape ``(n_cells,)``.
    names
        Names of the groups.
    """

    word: str
    codes: np.ndarray
    names: tuple[str, ...]

    def name(self, code: int) -> str:
        """Return the words for one group."""
        return f'{self.word} "{self.names[code]}"' if self.word != "data set" else "the data set"


def cell_groups(obs: pd.DataFrame, word: str, key: str | None) -> CellGroups | None:
    """Group the cells by ``obs[key]``; None when the key is absent or lacks values for some cells."""
    if key is None:
        return CellGroups("data set", np.zeros(len(obs), dtype=np.intp), ("all",))
    if key not in obs or obs[key].isna().any():
        return None
    codes, names = pd.factorize(obs[key], sort=False)
    return CellGroups(word, codes, tuple(map(str, names)))


def names_of(index: pd.Index) -> pd.Index:
    """Return names as an unnamed index of Python texts."""
    names: pd.Index = pd.Index(index.astype(str), dtype=object, name=None)
    return names


def feature_names(index: pd.Index, modality: str) -> pd.Index:
    """Return names of features, without the modality that MuData puts before all to make them unique.

    Examples
    --------
    >>> feature_names(pd.Index(["rna:CD4", "rna:CD3E"]), "rna").tolist()
    ['CD4', 'CD3E']
    """
    names = names_of(index)
    prefix = f"{modality}:"
    if len(names) and all(name.startswith(prefix) for name in names):
        names = pd.Index([name[len(prefix) :] for name in names], dtype=object)
    return names


def joined_obs(
    mdata: MuData, rna: AnnData, protein: AnnData, cells: pd.Index | None = None
) -> pd.DataFrame:
    """Join the MuData's own columns with those of its modalities; ``cells`` if these differ."""
    own, everywhere = mdata.obs, cells is None
    cells = names_of(rna.obs_names if cells is None else cells)
    if names_of(own.index).equals(cells):
        columns = {name: own[name] for name in own.columns}
    elif own.index.is_unique and cells.isin(own.index).all():
        columns = {name: own[name].reindex(cells) for name in own.columns}
    else:
        columns = {}
    for adata in (rna, protein):
        for name in adata.obs.columns:
            if everywhere:
                columns.setdefault(name, adata.obs[name])
            else:
                of_all, known = adata.obs[name].reindex(cells), columns.get(name)
                columns[name] = of_all if known is None else known.combine_first(of_all)
    values = {name: column.array.copy() for name, column in columns.items()}
    return pd.DataFrame(values, index=cells)


def column_of(obs: pd.DataFrame, name: str, key: str) -> pd.Series:
    """Return a column of ``obs`` that an argument names, or raise DataError."""
    if not isinstance(key, Hashable):
        raise DataError(f"{argument(name)} is {key!r}; give the name of one column of obs.")
    if key not in obs:
        raise DataError(f"{argument(name)} is {key!r}; {did_you_mean(str(key), obs.columns)}.")
    return obs[key]
