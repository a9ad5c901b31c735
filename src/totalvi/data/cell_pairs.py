"""Which cells of two lists are the same, whatever tools and people did to their names."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData

from totalvi.data.columns import names_of
from totalvi.data.io.readable_parts import say_of_reading
from totalvi.errors import DataError, ReadError

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
            enough = _is_enough(len(one), len(first), len(second))
            # a number alone, once more of the name is taken away, says nothing of the cell
            enough = enough and not (change and _are_numbers(keys[one]))
            best = CellPairs(one, two, change, enough)
        if best.is_enough and len(best.first) == min(len(first), len(second)):
            break
    return best


def _is_enough(n: int, n_first: int, n_second: int) -> bool:
    """Whether more cells agree than unrelated cells with barcodes of one list would."""
    by_chance = max(n_first, n_second) / WHITELIST
    least = min(0.98, max(_LEAST_SHARE, 0.3 + by_chance))
    return n > 0 and n >= least * min(n_first, n_second)


def _are_numbers(keys: pd.Index) -> bool:
    """Whether most of these are numbers alone, as of numbered cells."""
    return float(np.mean([re.fullmatch(r"[\d\W_]*", key) is not None for key in keys])) > 0.5


def _upper(name: str) -> str | None:
    return name.upper()


def _without_dots(name: str) -> str | None:
    return name.replace(".", "-")


def _without_number(name: str) -> str | None:
    return re.sub(r"[-_.:]\d{1,3}$", "", name)


def _without_sublibrary(name: str) -> str | None:
    return re.sub(r"__s\d+$", "", name)


def _plain(name: str) -> str | None:
    return re.sub(r"[^a-z0-9]", "", name.lower()) or None


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
    ("without the sublibrary at their end, as in __s1", _without_sublibrary, _without_sublibrary),
    ("without what stands before them", _without_prefix, _without_prefix),
    ("without case and punctuation", _plain, _plain),
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


def are_numbered(names: pd.Index) -> bool:
    """Whether cells have no names but their numbers, from 0 or 1, so that names tell nothing of them.

    Examples
    --------
    >>> are_numbered(pd.Index(["0", "1", "2"])), are_numbered(pd.Index(["7", "12", "30"]))
    (True, False)
    """
    return any(
        len(names) and names[0] == str(start) and names[-1] == str(start + len(names) - 1)
        and list(names) == [str(i) for i in range(start, start + len(names))]
        for start in (0, 1)
    )  # fmt: skip


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


def pair_modalities(
    rna: AnnData, protein: AnnData, where: tuple[Any, Any]
) -> tuple[AnnData, AnnData]:
    """Return RNA and proteins of the cells of both, in the order of the RNA and with its names.

    Parameters
    ----------
    where
        What both are called in messages.

    Raises
    ------
    ReadError
        When too few cells agree for it not to be by chance.
    """
    names, others = rna.obs_names, protein.obs_names
    by_number = isinstance(where[0], Path) and are_numbered(names) and are_numbered(others)
    if by_number and len(names) != len(others):
        raise ReadError(
            f"{where[0]} and {where[1]} have cells without names, only numbered, {len(names):,} and "
            f"{len(others):,} of them, so that none can be told from another; give the cells of both "
            "the names that the counting tool gave them."
        )
    if by_number:
        say_of_reading(
            rna,
            "cells_numbered",
            f"The cells of {where[0]} and {where[1]} are numbered, not named, and were paired in their "
            "order.",
        )
    if names.equals(others) or not (names.is_unique and others.is_unique):
        return rna, protein  # repeated names are reported by the checks
    pairs = pair_cells(names, others)
    said = in_words(pairs, len(names), len(others))
    if not pairs.is_enough:
        lonely = names[~names.isin(others)]
        raise ReadError(
            f"{where[0]} and {where[1]} are not of the same cells ({said}; the one alone has "
            f'"{lonely[0] if len(lonely) else names[0]}", and the other begins with "{others[0]}"); '
            "give both of one experiment, with the cells named alike."
        )
    n_dropped = len(names) - len(pairs.first), len(others) - len(pairs.first)
    if len(pairs.first) != len(names):
        rna = rna[pairs.first].copy()
    if not np.array_equal(pairs.second, np.arange(len(others))):
        protein = protein[pairs.second].copy()
    if pairs.change or any(n_dropped):
        message = f"The cells of {where[0]} and {where[1]} were paired by name: {said}"
        lonely = [f"{n:,} of {of}" for n, of in zip(n_dropped, where, strict=True) if n]
        if lonely:
            message += f"; left out, as the other lacks them, are {' and '.join(lonely)}"
        say_of_reading(rna, "cells_paired", f"{message}.")
    protein.obs_names = rna.obs_names
    return rna, protein


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
