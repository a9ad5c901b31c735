"""Axes of plots: which number of a cell, on which scale; tidy names; and the pairs to start with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from totalvi.data.panels.antibody_names import ALIASES, identify
from totalvi.errors import DataError

Scale = Literal["linear", "asinh", "log"]
SCALES: tuple[Scale, ...] = get_args(Scale)
COFACTOR = 5.0  # of asinh: linear well below this many counts, logarithmic above
FAR: dict[Scale, float] = {"linear": 1e12, "asinh": 50.0, "log": 50.0}  # beyond all cells


def to_scale(values: np.ndarray, scale: Scale) -> np.ndarray:
    """Return where values lie on an axis: x, asinh(x / 5), or log10(1 + x).

    Examples
    --------
    >>> to_scale(np.array([0.0, 9.0]), "log")
    array([0., 1.])
    """
    if scale == "asinh":
        return np.arcsinh(values / COFACTOR)
    return np.log10(1 + values) if scale == "log" else values


def from_scale(places: np.ndarray, scale: Scale) -> np.ndarray:
    """Return the values that lie at ``places`` on an axis.

    Examples
    --------
    >>> from_scale(np.array([0.0, 1.0]), "log")
    array([0., 9.])
    """
    values: np.ndarray = np.sinh(places) * COFACTOR if scale == "asinh" else places
    return 10.0**places - 1 if scale == "log" else values


def scale_ticks(high: float, scale: Scale) -> list[float] | None:
    """Return the counts to mark on an axis that reaches the value ``high``; None: evenly spaced.

    Examples
    --------
    >>> scale_ticks(2500.0, "asinh")
    [0.0, 10.0, 100.0, 1000.0]
    """
    if scale == "linear":
        return None
    powers = [10.0**power for power in range(-3, 9) if 10.0**power <= high]
    least = 10.0 if scale == "asinh" else 1.0
    return [0.0, *(power for power in powers if power >= min(least, high / 5))]


Kind = Literal[
    "umap",
    "protein_denoised",
    "protein_raw",
    "protein_foreground",
    "protein_clr",
    "gene_denoised",
    "gene_raw",
    "gene_log",
    "isotype_raw",
    "obs",
]
KINDS: tuple[Kind, ...] = get_args(Kind)
COUNTS: tuple[Kind, ...] = (
    "protein_denoised", "protein_raw", "gene_denoised", "gene_raw", "isotype_raw",
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """The values along one axis of a plot.

    Parameters
    ----------
    kind
        Which number of a cell: a coordinate of the map; a denoised or raw count, the foreground
        probability or the centred log ratio (CLR) of a protein; a denoised, raw or log-normalised count
        of a gene; a raw count of an isotype control; or a column of ``obs``.
    name
        Of the feature or column; "1" or "2" of the map.
    scale
        On which it is drawn.
    """

    kind: Kind
    name: str
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise DataError(f"{self.kind!r} is no kind of axis; give one of {', '.join(KINDS)}.")
        if self.scale not in SCALES:
            raise DataError(
                f"{self.scale!r} is no scale of an axis; give one of {', '.join(SCALES)}."
            )
        if not isinstance(self.name, str) or not self.name:
            raise DataError(f"An axis is named {self.name!r}; give the name of a feature.")


WORDS: dict[Kind, str] = {
    "protein_denoised": "protein, denoised",
    "protein_foreground": "protein, foreground probability",
    "protein_raw": "protein, raw counts",
    "protein_clr": "protein, CLR",
    "gene_denoised": "gene, denoised",
    "gene_raw": "gene, raw counts",
    "gene_log": "gene, log-normalised",
    "isotype_raw": "isotype control, raw counts",
    "obs": "annotation",
}
MEASURED = "raw counts"
VALUES: dict[str, tuple[Kind, Kind]] = {  # of proteins, of genes
    "denoised": ("protein_denoised", "gene_denoised"),
    MEASURED: ("protein_raw", "gene_raw"),
    "foreground": ("protein_foreground", "gene_denoised"),
    "CLR / log": ("protein_clr", "gene_log"),
}
HISTOGRAM = "histogram"
MAP = ("UMAP 1", "UMAP 2")
_GENE, _CONTROL, _ANNOTATION = " (gene)", " (isotype control)", " (annotation)"


class AxisChoices:
    """What people may put on an axis, under tidy names.

    Parameters
    ----------
    proteins, genes, columns
        Names of the features, and of columns of numbers in ``obs``.
    kinds
        Which values there are.
    has_map
        Whether the cells have places on a map.
    controls
        Names of isotype controls, of which there are raw counts alone.

    Attributes
    ----------
    values
        The choices of values, such as "denoised".
    labels
        All choices: the map, proteins, isotype controls, genes, annotation.
    tidy
        Tidy name of each protein.
    others
        What else people type for a protein, from `other_names`, by its label.

    Examples
    --------
    >>> choices = AxisChoices(["CD4_TotalSeqB"], ["CD4"], [], ("protein_raw", "gene_raw"), False)
    >>> choices.labels
    ['CD4', 'CD4 (gene)']
    >>> choices.axis("CD4", "raw counts", "asinh")
    Axis(kind='protein_raw', name='CD4_TotalSeqB', scale='asinh')
    """

    def __init__(
        self,
        proteins: Sequence[str],
        genes: Sequence[str],
        columns: Sequence[str],
        kinds: Sequence[Kind],
        has_map: bool,
        controls: Sequence[str] = (),
    ) -> None:
        self._kinds = kinds
        self.tidy = tidy_names(proteins)
        self.values = [word for word, (kind, _) in VALUES.items() if kind in kinds]
        self._names: dict[str, tuple[str, str]] = {}
        if has_map:
            self._names |= {label: ("umap", label[-1]) for label in MAP}
        self._names |= {tidy: ("protein", name) for name, tidy in self.tidy.items()}
        for name in controls:
            is_said = "control" in name.lower() and name not in self._names
            self._names[name if is_said else f"{name}{_CONTROL}"] = ("isotype", name)
        self._names |= {f"{name}{_GENE}": ("gene", name) for name in genes}
        self._names |= {f"{name}{_ANNOTATION}": ("obs", name) for name in columns}
        self._label_of = {named: label for label, named in self._names.items()}
        self.labels = list(self._names)
        self.others = {tidy: other_names(name) for name, tidy in self.tidy.items()}

    def axis(self, label: str, values: str, scale: Scale) -> Axis:
        """Return the axis of a choice; its scale is linear where values are no counts."""
        if label not in self._names:
            raise DataError(
                f"There is nothing named {label!r} to put on an axis; choose from the list."
            )
        family, name = self._names[label]
        alone: dict[str, Kind] = {"umap": "umap", "isotype": "isotype_raw"}
        kind = alone.get(family, "obs")
        if family in ("protein", "gene"):
            kind = VALUES[values][family == "gene"]
            if kind not in self._kinds:
                kind = "gene_raw"  # of runs without denoised genes
        if kind not in COUNTS:
            scale = "linear"
        elif family == "gene" and scale == "asinh":
            scale = "log"  # few counts of genes are above 5
        return Axis(kind, name, scale)

    def label(self, axis: Axis) -> str:
        """Return the choice that an axis is of."""
        family = axis.kind.partition("_")[0]
        return self._label_of.get((family, axis.name), axis.name)

    def full_name(self, label: str) -> str:
        """Return the name that a choice has in the data, where it is not its own."""
        family, name = self._names.get(label, ("", ""))
        return name if family == "protein" and name != label else ""

    def title(self, axis: Axis) -> str:
        """Return the words along an axis.

        Examples
        --------
        >>> choices = AxisChoices(["CD4-A0072"], [], [], ("protein_raw",), True)
        >>> choices.title(Axis("umap", "1")), choices.title(Axis("protein_raw", "CD4-A0072"))
        ('UMAP 1', 'CD4, raw counts')
        """
        label = self.label(axis)
        for note in (_GENE, _CONTROL, _ANNOTATION):
            label = label.removesuffix(note)
        if axis.kind in ("umap", "obs"):
            return label
        what, _, words = WORDS[axis.kind].partition(", ")
        is_plain = what == "protein" or (what == "isotype control" and "control" in label.lower())
        return f"{label}, {words}" if is_plain else f"{label}, {what}, {words}"


def other_names(name: str) -> list[str]:
    """Return what else people type to find an antibody: its name in the data, its target, synonyms.

    Examples
    --------
    >>> other_names("PD-1_TotalSeqB")
    ['PD-1_TotalSeqB', 'CD279', 'PDCD1', 'PD-1']
    """
    target = identify(name).target
    return list(dict.fromkeys((name, target, *ALIASES.get(target, ()))))


def tidy_names(names: Sequence[str]) -> dict[str, str]:
    """Return a short name for each antibody: its target; its own where two have it, or it is a number.

    Examples
    --------
    >>> tidy_names(["CD4_TotalSeqB", "CD3-1", "CD3-2"])
    {'CD4_TotalSeqB': 'CD4', 'CD3-1': 'CD3-1', 'CD3-2': 'CD3-2'}
    """
    targets = [identify(name).target for name in names]
    taken = set(names)
    return {
        name: target
        if target[:1].isalpha() and targets.count(target) == 1 and target not in taken
        else name
        for name, target in zip(names, targets, strict=True)
    }


LINEAGES = (  # pairs that part the lineages of blood, marrow and lymphoid tissue
    (("CD3", "CD3e", "TCRb", "CD5"), ("CD19", "CD20", "CD45R/B220", "CD45R")),
    (("CD4",), ("CD8a", "CD8", "CD8b")),
    (("CD14", "CD11b", "Ly-6C"), ("CD16", "CD16/CD32", "Ly-6G", "CD11c")),
    (("CD56", "NK1.1", "CD335"), ("CD3", "CD3e", "TCRb")),
    (("CD45RA",), ("CD45RO", "CD62L", "CD197")),
)


def start_pairs(names: Sequence[str], spread: np.ndarray) -> list[tuple[str, str]]:
    """Return pairs of proteins to look at first: markers of lineages, else those that vary the most.

    Parameters
    ----------
    names
        Of all proteins.
    spread
        How much each varies between cells, (proteins,); NaN: unknown.

    Examples
    --------
    >>> start_pairs(["CD8a_TotalSeqB", "Ig", "CD19", "CD4", "CD3"], np.zeros(5))
    [('CD3', 'CD19'), ('CD4', 'CD8a_TotalSeqB')]
    >>> start_pairs(["a", "b", "c"], np.array([0.2, 1.0, 0.5]))
    [('b', 'c')]
    """
    by_key = {identify(name).key: name for name in reversed(names)}
    found = []
    for sides in LINEAGES:
        keys = [[identify(target).key for target in side] for side in sides]
        pair = [next((by_key[key] for key in side if key in by_key), None) for side in keys]
        if pair[0] is not None and pair[1] is not None:
            found.append((pair[0], pair[1]))
    if not found and len(names):
        order = np.argsort(-np.nan_to_num(spread), kind="stable")
        first, second = order[0], order[min(1, len(order) - 1)]
        found.append((names[first], names[second]))
    return found
