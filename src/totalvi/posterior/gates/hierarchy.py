"""Read a hierarchy of populations from text: which levels of which markers define each."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, Union

from totalvi.data.io.features import CONTROL
from totalvi.errors import TotalviError, did_you_mean

Level: TypeAlias = Literal["+", "low", "mid", "high"]
Gate: TypeAlias = Union["Marker", "All", "Any", "Else", "Not"]

SHIPPED = Path(__file__).with_name("hierarchies")
_GENE = "gene:"
_LEVELS: dict[str, Level] = {"+": "+", "-": "low", "low": "low", "mid": "mid", "high": "high"}
_MARKER = re.compile(r'("?)(?P<name>[^"]+?)\1(?P<level>\+|-|low|mid|high)(?P<optional>\??)')
_TOKEN = re.compile(r'\(|\)|(?:[^\s()"]|"[^"]*")+')
_WORDS = ("or", "else", "not")


class HierarchyError(TotalviError, ValueError):
    """A hierarchy of populations cannot be read."""


class Marker(NamedTuple):
    """A level of an antigen or gene.

    Parameters
    ----------
    name
        Of the antigen, or of the gene after ``gene:``.
    level
        "+" is anything above "low".
    optional
        Whether it is left out where it was not measured or its antibody failed.
    """

    name: str
    level: Level
    optional: bool = False

    @property
    def gene(self) -> str | None:
        """Symbol of the gene, None for an antigen."""
        return self.name.removeprefix(_GENE) if self.name.startswith(_GENE) else None


class All(NamedTuple):
    """What fulfils all parts."""

    parts: tuple[Gate, ...]


class Any(NamedTuple):
    """What fulfils at least one part."""

    parts: tuple[Gate, ...]


class Else(NamedTuple):
    """The first part whose markers were measured and tell levels."""

    parts: tuple[Gate, ...]


class Not(NamedTuple):
    """What does not fulfil the part."""

    part: Gate


@dataclass(frozen=True)
class Population:
    """A named gate.

    Attributes
    ----------
    name
        Unique in the hierarchy.
    gate
        What its cells fulfil besides the gates of the populations above it.
    parent
        Name of the population above it, None at the top.
    text
        The gate as it is written.
    """

    name: str
    gate: Gate
    parent: str | None
    text: str

    def markers(self) -> Iterator[Marker]:
        """Yield the markers of the gate, each as often as it is written."""
        yield from markers_of(self.gate)


def markers_of(gate: Gate) -> Iterator[Marker]:
    """Yield the markers of a gate, each as often as it is written."""
    match gate:
        case Marker():
            yield gate
        case Not():
            yield from markers_of(gate.part)
        case _:
            for part in gate.parts:
                yield from markers_of(part)


@dataclass(frozen=True)
class Hierarchy:
    """Populations, each after the one above it.

    Attributes
    ----------
    name
        Of the hierarchy, such as "blood".
    populations
        At least one.
    """

    name: str
    populations: tuple[Population, ...]

    def path(self, name: str) -> tuple[str, ...]:
        """Return the names from the top down to a population."""
        parents = {population.name: population.parent for population in self.populations}
        names: list[str] = []
        step: str | None = name
        while step is not None:
            names.append(step)
            step = parents[step]
        return tuple(reversed(names))

    def children(self, name: str | None) -> list[Population]:
        """Return the populations right below one, or at the top."""
        return [population for population in self.populations if population.parent == name]


def shipped_hierarchies() -> list[str]:
    """Return the names of the hierarchies that come with the package.

    Examples
    --------
    >>> shipped_hierarchies()
    ['blood', 'bone_marrow', 'mouse_spleen', 'tonsil']
    """
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def read_hierarchy(name_or_path: str | Path) -> Hierarchy:
    """Read a hierarchy: one that comes with the package, by name, or a text file.

    docs/gates.md describes the format.

    Raises
    ------
    HierarchyError
        When there is no such hierarchy, or a line cannot be read; the message names the line.

    Examples
    --------
    >>> read_hierarchy("blood").path("CD4 T")
    ('T', 'CD4 T')
    """
    name, path = str(name_or_path), Path(name_or_path)
    shipped = shipped_hierarchies()
    if name in shipped:
        path = SHIPPED / f"{name}.txt"
    elif not path.is_file():
        raise HierarchyError(
            f"There is no file and no hierarchy {name!r}; {did_you_mean(name, shipped)}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HierarchyError(
            f"{path} cannot be read as text ({error}); save the hierarchy as plain text (UTF-8)."
        ) from error
    return parse_hierarchy(text, path.stem)


def parse_hierarchy(text: str, name: str = "hierarchy") -> Hierarchy:
    """Read a hierarchy from its text.

    Parameters
    ----------
    text
        A population a line, ``name: gate > gate``; docs/gates.md describes the format.
    name
        Of the hierarchy.

    Raises
    ------
    HierarchyError
        When a line cannot be read; the message names it and says what it may be.

    Examples
    --------
    >>> hierarchy = parse_hierarchy('''
    ... T: CD3+ CD19-            # the name of a population, and its gate
    ... CD4 T: T > CD4+ CD8-
    ... T > CD8+ CD4-            # without a name, the gate is the name
    ... ''')
    >>> [population.name for population in hierarchy.populations]
    ['T', 'CD4 T', 'CD8+ CD4-']
    """
    found: dict[str, Population] = {}
    for number, line in enumerate(text.splitlines(), 1):
        content = re.sub(r"(^|\s)#.*", "", line).strip()
        if not content:
            continue
        try:
            for population in _line(content, found):
                found[population.name] = population
        except HierarchyError as error:
            raise HierarchyError(f"Line {number} of {name!r}, {content!r}: {error}") from None
    if not found:
        raise HierarchyError(f"{name!r} has no population; write one a line, such as T: CD3+ CD19-")
    return Hierarchy(name, tuple(found.values()))


def _line(content: str, found: dict[str, Population]) -> Iterator[Population]:
    """Yield the populations that a line adds to those found before."""
    named = re.fullmatch(r"(?P<name>[^>]*?):(?:\s+(?P<rest>.*))?", content)
    own_name, rest = (named["name"].strip(), named["rest"] or "") if named else ("", content)
    if named and not own_name:
        raise HierarchyError(
            "there is no name before the colon; write one, or leave out the colon."
        )
    steps = [re.sub(r"\s+", " ", step).strip() for step in rest.split(">")]
    parent: str | None = None
    for position, step in enumerate(steps):
        is_last = position == len(steps) - 1
        if step in found and not is_last:
            if found[step].parent != parent and position > 0:
                raise HierarchyError(
                    f"population {step!r} is below {found[step].parent!r}, not {parent!r}; "
                    "write its own name alone, or its whole path."
                )
            parent = step
            continue
        try:
            gate = _Reader(step).gate()
        except HierarchyError as error:
            if not is_last and (near := get_close_matches(step, found, n=1)):
                raise HierarchyError(
                    f"no population {step!r} was named above; did you mean {near[0]!r}?"
                ) from None
            raise error from None
        name = own_name if is_last and own_name else step
        if name in found:
            raise HierarchyError(
                f"there is a population {name!r} already; give this one another name before a colon."
            )
        yield Population(name, gate, parent, step)
        parent = name


class _Reader:
    """Reads a gate from its words."""

    def __init__(self, text: str) -> None:
        self.words = _TOKEN.findall(text)
        self.position = 0
        unread = _TOKEN.sub("", text).strip()
        if unread:
            raise HierarchyError(f'{unread!r} is not closed; quote a whole name, as in "TCR Vd2"+')
        if not self.words:
            raise HierarchyError("a gate is empty; write markers with their levels, such as CD3+.")

    def gate(self) -> Gate:
        found = self._any()
        if self.position < len(self.words):
            raise HierarchyError('there is a ")" without "("; remove it, or open the bracket.')
        return found

    def _next(self) -> str | None:
        return self.words[self.position] if self.position < len(self.words) else None

    def _any(self) -> Gate:
        parts = self._separated("or", self._all)
        return parts[0] if len(parts) == 1 else Any(parts)

    def _all(self) -> Gate:
        parts = [self._else()]
        while self._next() not in (None, "or", ")"):
            parts.append(self._else())
        return parts[0] if len(parts) == 1 else All(tuple(parts))

    def _else(self) -> Gate:
        parts = self._separated("else", self._one)
        return parts[0] if len(parts) == 1 else Else(parts)

    def _separated(self, separator: str, part: Callable[[], Gate]) -> tuple[Gate, ...]:
        parts = [part()]
        while self._next() == separator:
            self.position += 1
            parts.append(part())
        return tuple(parts)

    def _one(self) -> Gate:
        word = self._next()
        if word is None or word in ("or", "else", ")"):
            before = f'after "{self.words[self.position - 1]}"' if self.position else "at the start"
            raise HierarchyError(f"a marker is missing {before}; write one, such as CD3+.")
        self.position += 1
        if word == "not":
            return Not(self._one())
        if word == "(":
            inside = self._any()
            if self._next() != ")":
                raise HierarchyError('a "(" is not closed; add ")".')
            self.position += 1
            return inside
        return _marker(word)


def _marker(word: str) -> Marker:
    match = _MARKER.fullmatch(word)
    if match is None:
        similar = word.lower() in _WORDS
        fix = (
            f"write {word.lower()!r} in small letters"
            if similar
            else f"write a level right after the name, as in {word.strip(chr(34))}+, "
            "or -, low, mid, high, and quote names with spaces"
        )
        raise HierarchyError(f"{word!r} has no level; {fix}.")
    marker = Marker(match["name"], _LEVELS[match["level"]], bool(match["optional"]))
    if marker.gene is None and CONTROL.search(marker.name):
        antigen = f"anti-{marker.name}"
        antigen = "" if CONTROL.search(antigen) else f', or name an antibody against it "{antigen}"'
        raise HierarchyError(
            f'"{marker.name}" is named like an isotype control, which binds no antigen and tells no '
            f"population; leave it out{antigen}."
        )
    return marker


def distinct_markers(populations: Iterable[Population]) -> list[str]:
    """Return the names of all markers, in order, each once."""
    return list(dict.fromkeys(m.name for p in populations for m in p.markers()))
