"""Which column, modality or layer of the user's object is what, and which cells are the same."""

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
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


def require_same_cells(rna: AnnData, protein: AnnData, rna_name: str, protein_name: str) -> None:
    """Refuse modalities whose cells differ in set or order."""
    a, b = names_of(rna.obs_names), names_of(protein.obs_names)
    if a.equals(b):
        return
    counts = f'modality "{rna_name}" holds {len(a)} cells and modality "{protein_name}" {len(b)}'
    first, second = (f'mdata["{name}"].obs_names' for name in (rna_name, protein_name))
    both = f"mdata[{first}.intersection({second})].copy()"
    only_rna, only_protein = a[~a.isin(b)], b[~b.isin(a)]
    if len(only_rna) or len(only_protein):
        lonely, name = (only_rna, rna_name) if len(only_rna) else (only_protein, protein_name)
        raise DataError(
            f"{counts}, and {len(only_rna) + len(only_protein)} are in only one of them, the first "
            f'"{lonely[0]}" in "{name}"{_hint(a, b)}; keep the cells of both with {both}.'
        )
    if len(a) != len(b):
        raise DataError(
            f"{counts}, because cell names are repeated; make them unique with "
            "obs_names_make_unique() in both."
        )
    row = int(np.flatnonzero(a != b)[0])
    raise DataError(
        f"{counts}, the same ones in another order, which first differs at row {row} "
        f'("{a[row]}" and "{b[row]}"); put them in one order with {both}.'
    )


def _hint(a: pd.Index, b: pd.Index) -> str:
    """Say how the names of two lists of cells differ, if a change makes them agree."""
    pairs = pair_cells(a, b)
    if not (pairs.change and pairs.is_enough):
        return ""
    return f" ({in_words(pairs, len(a), len(b))}, so rename those of one of them)"


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


_CORE = re.compile(r"[ACGTN]{6,}", re.IGNORECASE)
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
WHITELIST = 737_280  # barcodes of the smallest list in use: unrelated cells share some by chance
_LEAST_SHARE = 0.5
_MOST_TAGS = 1000


class CellPairs(NamedTuple):
    """Which cell of one list is which of another.

    Attributes
    ----------
    first, second
        Positions in both lists, pair by pair, in the order of the first.
    change
        What the names were taken without, or as, for these to agree; "" where they are the same.
    is_enough
        Whether so many agree that it is not by chance, and those that do not may be left out.
    """

    first: np.ndarray
    second: np.ndarray
    change: str
    is_enough: bool


def pair_cells(first: pd.Index, second: pd.Index) -> CellPairs:
    """Find the cells of both lists, as they are named or after a change that makes the names agree.

    Examples
    --------
    >>> pairs = pair_cells(pd.Index(["AACGTTGA-1", "CCATGGTA-1"]), pd.Index(["CCATGGTA", "AACGTTGA"]))
    >>> pairs.second.tolist(), pairs.change
    ([1, 0], 'without the number at their end, as in -1')
    """
    first, second = names_of(first), names_of(second)
    best = CellPairs(np.empty(0, np.int64), np.empty(0, np.int64), "", False)
    for change, keys, others in _changes(first, second):
        if change in _BY_BASES:
            one, two = _pairs_of_lanes(keys, others, first, second)
        else:
            one, two = _pairs(keys, others)
        if len(one) > len(best.first):
            best = CellPairs(one, two, change, _is_enough(len(one), len(first), len(second)))
        if best.is_enough and len(best.first) == min(len(first), len(second)):
            break
    return best


def _is_enough(n: int, n_first: int, n_second: int) -> bool:
    """Whether more cells agree than unrelated cells with barcodes of one list would."""
    by_chance = max(n_first, n_second) / WHITELIST
    least = min(0.98, max(_LEAST_SHARE, 0.3 + by_chance))
    return n > 0 and n >= least * min(n_first, n_second)


def _upper(name: str) -> str | None:
    return name.upper()


def _without_dots(name: str) -> str | None:
    return name.replace(".", "-")


def _without_number(name: str) -> str | None:
    return re.sub(r"[-_.:]\d{1,3}$", "", name)


def _without_prefix(name: str) -> str | None:
    return re.sub(r"^.*[_:#|]", "", name) or None


def _bases(name: str) -> str | None:
    return "".join(_CORE.findall(name)).upper() or None


def _translated(name: str) -> str | None:
    """Return the barcode that 10x attaches to antibodies where it attaches this one to RNA."""
    bases = _bases(name)
    if bases is None or len(bases) != 16:
        return None
    return bases[:7] + bases[7:9].translate(_COMPLEMENT) + bases[9:]


def _reversed(name: str) -> str | None:
    bases = _bases(name)
    return None if bases is None else bases.translate(_COMPLEMENT)[::-1]


_CHANGES: tuple[tuple[str, Callable[[str], str | None], Callable[[str], str | None]], ...] = (
    ("in upper case", _upper, _upper),
    ('with "-" for "."', _without_dots, _without_dots),
    ("without the number at their end, as in -1", _without_number, _without_number),
    ("without what stands before them", _without_prefix, _without_prefix),
    ("by the bases of their barcodes", _bases, _bases),
    ("by their barcodes, translated as 10x does for TotalSeq-B and C", _bases, _translated),
    ("by their barcodes, reversed and complemented", _bases, _reversed),
)
_BY_BASES = {change for change, one, _ in _CHANGES if one is _bases}


def _changes(first: pd.Index, second: pd.Index) -> Iterator[tuple[str, pd.Index, pd.Index]]:
    """Yield both lists after each change, the mildest first."""
    yield "", first, second
    for change, of_first, of_second in _CHANGES:
        yield change, _changed(first, of_first), _changed(second, of_second)


def _changed(names: pd.Index, change: Callable[[str], str | None]) -> pd.Index:
    return pd.Index([change(name) for name in names], dtype=object)


def _pairs(first: pd.Index, second: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of names that both lists have, if each has them once."""
    if not (first.is_unique and second.is_unique):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    position = second.get_indexer(first)
    known = (position >= 0) & np.array([name is not None for name in first], dtype=bool)
    return np.flatnonzero(known), position[known]


def _pairs_of_lanes(
    keys: pd.Index, others: pd.Index, first: pd.Index, second: pd.Index
) -> tuple[np.ndarray, np.ndarray]:
    """Pair by barcodes where those of several lanes or samples are listed together.

    What stands around the barcode names the lane; lanes are those whose barcodes agree.
    """
    bare, bare_others = keys.dropna(), others.dropna()
    if bare.is_unique and bare_others.is_unique:
        return _pairs_without_missing(keys, others)
    tables = []
    for bases, names in ((keys, first), (others, second)):
        lanes = [_CORE.sub("", name) for name in names]
        table = pd.DataFrame({"key": bases, "lane": lanes, "place": np.arange(len(names))})
        tables.append(table.dropna().drop_duplicates(["key", "lane"], keep=False))
    one, two = tables
    if max(table["lane"].nunique() for table in tables) > _MOST_TAGS:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    both = one.merge(two, on="key")
    shared: Counter[tuple[str, str]] = Counter(zip(both["lane_x"], both["lane_y"], strict=True))
    sizes, sizes_of_others = Counter(one["lane"]), Counter(two["lane"])
    partner: dict[str, str] = {}
    for (lane, other_lane), n in shared.most_common():
        if lane in partner or other_lane in partner.values():
            continue
        rivals = [m for (a, b), m in shared.items() if (a == lane) != (b == other_lane)]
        alone = n >= 2 * max(rivals, default=0)
        if alone and _is_enough(n, sizes[lane], sizes_of_others[other_lane]):
            partner[lane] = other_lane
    kept = both[both["lane_x"].map(partner) == both["lane_y"]].sort_values("place_x")
    return kept["place_x"].to_numpy(np.int64), kept["place_y"].to_numpy(np.int64)


def _pairs_without_missing(first: pd.Index, second: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    has_key, other_has_key = np.flatnonzero(first.notna()), np.flatnonzero(second.notna())
    one, two = _pairs(first[has_key], second[other_has_key])
    return has_key[one], other_has_key[two]


def in_words(pairs: CellPairs, n_first: int, n_second: int) -> str:
    """Say how many cells of both lists agree, and how they were compared.

    Examples
    --------
    >>> in_words(CellPairs(np.arange(9), np.arange(9), "in upper case", True), 12, 10)
    '9 of 12 and 10 cells agree once the names are compared in upper case'
    """
    counted = f"of {n_first:,}" if n_first == n_second else f"of {n_first:,} and {n_second:,}"
    how = f" once the names are compared {pairs.change}" if pairs.change else ""
    return f"{len(pairs.first):,} {counted} cells agree{how}"


def column_of(obs: pd.DataFrame, name: str, key: str) -> pd.Series:
    """Return a column of ``obs`` that an argument names, or raise DataError."""
    if not isinstance(key, Hashable):
        raise DataError(f"{argument(name)} is {key!r}; give the name of one column of obs.")
    if key not in obs:
        raise DataError(f"{argument(name)} is {key!r}; {did_you_mean(str(key), obs.columns)}.")
    return obs[key]
