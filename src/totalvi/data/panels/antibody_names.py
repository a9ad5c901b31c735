"""Read target, clone and species from an antibody's name, without the tags of its maker."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from totalvi.data.io.features import CONTROL


class Antibody(NamedTuple):
    """The parts of a name.

    Attributes
    ----------
    target
        Name of the target: a CD designation if there is one, such as ``CD279`` for PD-1; else the name
        without clone and tags.
    key
        The target without case, punctuation and Greek letters: equal for equal targets.
    clone
        Clone, or "".
    species
        Species whose protein the antibody binds according to its name, such as "human" or
        "human/mouse", or "".
    why
        How the target was found, in a few words; "" if the name itself is the target.
    """

    target: str
    key: str
    clone: str = ""
    species: str = ""
    why: str = ""


class _Reading(NamedTuple):
    """A target read from a piece of a name; ``rank`` 2: a CD designation, 1: an alias, 0: neither."""

    target: str
    rank: int


_GREEK = str.maketrans("αβγδεζκλ", "abgdezkl")
_GREEK_WORD = re.compile("alpha|beta|gamma|delta|epsilon|zeta|kappa|lambda")

_WORD, _END = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"  # unlike \b, "_" separates words
_SPECIES_WORD = r"(?:human|mouse|rat|hu|ms|rt)"
_TAGS = [
    re.compile(rf"{_WORD}Total-?(?:Seq)?(?:™|\(?TM\)?)?[-_. ]?[ABCD]?{_END}", re.IGNORECASE),
    re.compile(rf"{_WORD}[ABCD][01]\d{{3}}{_END}"),  # a maker's number, such as A0046
    re.compile(r"[-_.][ACGT]{8,}$"),  # the barcode itself, no shorter than of REAP-seq
    re.compile(r"^(?:adt|prot|protein|cite|ab)[-_.: ]+", re.IGNORECASE),
    re.compile(r"[-_.: ]+(?:adt|prot|protein|antibody)$", re.IGNORECASE),
    re.compile(r"(?<!tcr)(?<!hla)(?<!66)(?<!235)[-_.: ]+ab$", re.IGNORECASE),  # not TCR.AB
    re.compile(r"[(\[]\s*[)\]]"),
]
# What R makes of a repeated name; not CD45.1, NK1.1 and Va7.2, which are names of their own.
_REPEATED = re.compile(
    r"(?<=[a-z0-9])(?<!cd45)(?<!cd90)(?<!cd229)(?<!nk1)(?<!nk[- ]1)(?<!thy1)(?<!thy[- ]1)"
    r"(?<!ly\d)(?<!ly[- ]\d)(?<!v.\d)(?<!v.\d\d)\.\d$",
    re.IGNORECASE,
)
_POINT = re.compile(r"(?<=\d)point(?=\d)")  # as in Va7point2
_SPECIES = re.compile(
    rf"^(?:anti[-_. ]*)?(?P<species>{_SPECIES_WORD}(?:[/,&_+ ]*{_SPECIES_WORD})*)[-_./: ]+",
    re.IGNORECASE,
)
_SPECIES_NOTE = re.compile(
    rf"[(\[]\s*(?:anti-)?(?P<species>{_SPECIES_WORD})\s*[)\]]", re.IGNORECASE
)
_SPECIES_LETTER = re.compile(r"^(?P<species>Hu|Ms|[hm])(?=CD\d)")
_ANTI = re.compile(r"^(?:anti(?:[-_. ]+|(?=CD\d))|[a\u03b1]-?(?=CD\d))", re.IGNORECASE)
_SPECIES_NAMES = {"hu": "human", "h": "human", "ms": "mouse", "m": "mouse", "rt": "rat"}

_ABSEQ = re.compile(r"[-_.|]AHS\d{4}(?:[-_.|]pAbO)?$", re.IGNORECASE)
_BRACKETS = re.compile(r"[(\[]([^()\[\]]*)[)\]]")
_SEPARATOR = re.compile(r"[-_.:,; ]+")
_CLONE = re.compile(r"(?=.*\d)(?=.*[A-Za-z0-9].*[A-Za-z0-9])[A-Za-z0-9][-A-Za-z0-9./ ]{2,13}")
_NUMBER = re.compile(r"[-_ ]\d")

_CD = re.compile(
    r"""cd[-_. ]?w?(?P<number>\d+)  # "w": a designation that was provisional
        (?: (?P<close>[a-z]{0,3}\d{0,2} | [a-z]\d?(?:[/,][a-z]\d?)+)
          | [-_. ]?(?P<apart>alpha|beta|gamma|delta|epsilon|zeta|ra|rb|rc|ro|r0|[a-hlpr])
        )""",
    re.IGNORECASE | re.VERBOSE,
)
_UPPER = {"45ra", "45rb", "45rc", "45ro", "62e", "62l", "62p"}


def identify(name: str) -> Antibody:
    """Read the target, clone and species from an antibody's name.

    The function does not guess. If the parts of a name disagree, or one holds a word that is neither
    clone nor alias, the whole name is the target.

    Examples
    --------
    >>> identify("ADT_CD8a_A0046").target, identify("anti-human CD3 [UCHT1]").target
    ('CD8a', 'CD3')
    >>> identify("IL7Ralpha (CD127)").target, identify("PD-1 (EH12.2H7)")[:3]
    ('CD127', ('CD279', 'cd279', 'EH12.2H7'))
    """
    text = _POINT.sub(".", unicodedata.normalize("NFKC", name).strip())
    control = _isotype_control(text) if CONTROL.search(text) else None
    if control is not None:
        return control
    bare, species = _without_tags(_front_of_abseq(text))
    antibody = _read(bare) if bare else _Read(_Reading(text or name, 0), "", "")
    target = antibody.reading.target
    reasons = []
    if antibody.reading.rank and spelling_key(target) != spelling_key(antibody.word):
        reasons.append(f"{antibody.word} is {target}")
    if antibody.clone:
        reasons.append(f"clone {antibody.clone}")
    if bare != text:
        reasons.append("tags left out")
    if not reasons and target != name:
        reasons.append(f"read as {target}")
    return Antibody(target, spelling_key(target), antibody.clone, species, "; ".join(reasons))


def has_known_target(name: str) -> bool:
    """Whether a name is that of a CD designation, or of another target that is known.

    Examples
    --------
    >>> has_known_target("anti-human CD3_TotalSeqB"), has_known_target("Proximal")
    (True, False)
    """
    target = identify(name).target
    return _cd_designation(target) is not None or spelling_key(target) in _TARGET_OF_KEY


def spelling_key(text: str) -> str:
    r"""Return a name without case, punctuation and Greek letters.

    Two numbers stay separate: "CD3-2" is not "CD32".

    Examples
    --------
    >>> spelling_key("IL-7R\N{GREEK SMALL LETTER ALPHA}"), spelling_key("IL7R alpha")
    ('il7ra', 'il7ra')
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(_GREEK)
    text = _GREEK_WORD.sub(lambda match: match.group()[0], text)
    text = re.sub(r"(?<=\d)[^a-z0-9]+(?=\d)", "|", text)
    return re.sub(r"[^a-z0-9|]", "", text)


def read_names(file: str) -> dict[str, tuple[str, ...]]:
    """Return a table from a file beside this one: each name, and its other names."""
    lines = Path(__file__).with_name(file).read_text(encoding="utf-8").splitlines()
    rows = (line.partition("\t") for line in lines if line and not line.startswith("#"))
    return {name: tuple(filter(None, others.split(", "))) for name, _, others in rows}


ALIASES = read_names("antibody_aliases.tsv")
_TARGET_OF_KEY = {
    spelling_key(alias): target
    for target, aliases in ALIASES.items()
    for alias in (target, *aliases)
}
_CLONES_OF_ISOTYPE = {  # controls that are often named only by their clone
    "mouse IgG1": "MOPC-21 MG1-45 X40",
    "mouse IgG2a": "MOPC-173 MG2a-53 G155-178",
    "mouse IgG2b": "MPC-11 MG2b-57 27-35",
    "rat IgG1": "RTK2071",
    "rat IgG2a": "RTK2758",
    "rat IgG2b": "RTK4530",
    "rat IgG2c": "RTK4174",
    "hamster IgG": "HTK888",
}
_ISOTYPE_OF_KEY = {
    spelling_key(clone): isotype
    for isotype, clones in _CLONES_OF_ISOTYPE.items()
    for clone in clones.split()
}


class _Read(NamedTuple):
    """A target, the word from which it was read, and its clone."""

    reading: _Reading
    word: str
    clone: str


def _front_of_abseq(text: str) -> str:
    """Cut ``CD3:UCHT1|CD3E|AHS0231|pAbO``, with any separators, before the gene."""
    front = _ABSEQ.sub("", text)
    if front == text:
        return text
    separator = "|" if "|" in front else next((mark for mark in "-._" if mark in front), "|")
    return front.rpartition(separator)[0].replace(":", " ") or front


def _without_tags(text: str) -> tuple[str, str]:
    """Remove makers' tags, "anti" and species repeatedly; return the name and the species."""
    species = ""
    before = None
    while before != text:
        before = text
        for tag in _TAGS:
            text = tag.sub("", text)
        text = _without_repeat(text).strip(" -_.:,;")
        for form in (_SPECIES, _SPECIES_NOTE, _SPECIES_LETTER):
            match = form.search(text)
            if match is not None:
                found = re.findall(f"{_SPECIES_WORD}|^[hm]$", match["species"].lower())
                species = species or "/".join(sorted({_SPECIES_NAMES.get(s, s) for s in found}))
                text = text[: match.start()] + text[match.end() :]
        text = _ANTI.sub("", text)
    return text, species


def _without_repeat(text: str) -> str:
    """Cut the number that R adds to a repeated name, but not of TIM.3, in which R wrote "." for "-"."""
    stem = _REPEATED.sub("", text)
    is_repeat = stem != text and not _reading(text).rank
    return stem if is_repeat and (stem[-1].isdigit() or _reading(stem).rank) else text


def _read(text: str) -> _Read:
    """Read a name without tags: a target, optionally followed by clone or alias, or in brackets."""
    whole = _reading(text)
    if whole.rank:
        return _Read(whole, text, "")
    notes = [note.strip() for note in _BRACKETS.findall(text)]
    outside = re.sub(r"\s+", " ", _BRACKETS.sub(" ", text)).strip(" -_.:,;")
    read = _read_outside(outside) if outside else _Read(_Reading("", 0), "", "")
    best, word, clone = read
    for note in notes:
        inside = _note(note)
        if not _agree(best, inside):
            return _Read(_Reading(text, 0), text, "")  # two targets: neither can be preferred
        if inside.rank > best.rank:
            best, word = inside, note
        elif not inside.rank and not clone and best.rank:
            clone = _clone(note)
    if not best.rank and notes:  # "Notch3 (MHN3-21)": a clone after a target that has no alias
        clones = [_clone(note) for note in notes]
        if len(notes) == 1 and clones[0] and outside:
            return _Read(_Reading(outside, 0), outside, clones[0])
        return _Read(_Reading(text, 0), text, "")
    return _Read(best, word, clone)


def _read_outside(text: str) -> _Read:
    """Read the longest prefix that is a target, if a clone, a number or its alias follows."""
    whole = _reading(text)
    if whole.rank:
        return _Read(whole, text, "")
    for separator in reversed(list(_SEPARATOR.finditer(text))):
        head, tail = text[: separator.start()], text[separator.end() :]
        front = _reading(head)
        if not front.rank or not tail:
            continue
        behind = _reading(tail)
        if behind.rank:
            both = front if front.rank >= behind.rank else behind
            return _Read(both if _agree(front, behind) else _Reading(text, 0), text, "")
        if front.rank == 2 and _NUMBER.fullmatch(text[separator.start() :]):
            return _Read(front, head, "")
        clone = _clone(tail)
        return _Read(front, head, clone) if clone else _Read(_Reading(text, 0), text, "")
    return _Read(_Reading(text, 0), text, "")


def _note(text: str) -> _Reading:
    """Read the text in brackets: one alias, or a list of several."""
    whole = _reading(text)
    if whole.rank:
        return whole
    readings = [_reading(part.strip()) for part in re.split(r"[,;]", text)]
    known = [reading for reading in readings if reading.rank]
    return max(known, key=lambda reading: reading.rank) if known else whole


def _agree(a: _Reading, b: _Reading) -> bool:
    """Return whether two parts can name one antibody, as CD45RA and PTPRC do, but not CD3 and CD4."""
    if not a.rank or not b.rank or a.target == b.target:
        return True
    numbers = [set(re.findall(r"CD(\d+)", reading.target)) for reading in (a, b)]
    return a.rank != b.rank and not numbers[0].isdisjoint(numbers[1])


def _clone(text: str) -> str:
    """Return the text as a clone; "" if it is none."""
    text = re.sub(r"^clone[-_: ]*", "", text, flags=re.IGNORECASE)
    return text if _CLONE.fullmatch(text) else ""


def _reading(text: str) -> _Reading:
    """Read a text that is only a target."""
    designation = _cd_designation(text)
    if designation is not None:
        return _Reading(_TARGET_OF_KEY.get(spelling_key(designation), designation), 2)
    alias = _TARGET_OF_KEY.get(spelling_key(text))
    if alias is not None:
        return _Reading(alias, 1)
    if "/" in text:  # a complex such as CD11a/CD18, or two names of one target
        words = [part.strip() for part in text.split("/")]
        if words[0][:2].upper() == "CD":  # CD16/32
            words = ["CD" + word if word.isdigit() else word for word in words]
        parts = [_reading(word) for word in words]
        if all(part.rank for part in parts):
            targets = list(dict.fromkeys(part.target for part in parts))
            return _Reading("/".join(targets), min(part.rank for part in parts))
    return _Reading(text, 0)


def _cd_designation(text: str) -> str | None:
    """Return ``CD62L`` for ``cd62l``, ``CD-62L`` or ``CD62 L``; None for other names."""
    match = _CD.fullmatch(text.lower().translate(_GREEK))
    if match is None:
        return None
    number = match["number"]
    suffix = (match["close"] or match["apart"] or "").replace(",", "/")
    if match["apart"] and len(suffix) > 2:
        suffix = suffix[0]  # the name of a Greek letter
    if number == "45" and suffix == "r0":
        suffix = "ro"
    if suffix == "r" or number + suffix in _UPPER:
        suffix = suffix.upper()
    elif re.fullmatch("[a-k]{2,3}", suffix):  # CD66ace binds CD66a, c and e
        suffix = "/".join(suffix)
    return f"CD{number}{suffix}"


def _isotype_control(text: str) -> Antibody | None:
    """Name an isotype control by species, class and subclass; None if the name has no class."""
    tagless = text
    for tag in _TAGS:
        tagless = tag.sub("", tagless)
    known = next(
        (
            isotype
            for clone, isotype in _ISOTYPE_OF_KEY.items()
            if clone in spelling_key(re.sub(r"iso[a-z]*", "", tagless, flags=re.IGNORECASE))
        ),
        None,
    )
    if known is None:
        found = re.search(r"ig[ _-]?([gmade])[ _-]?([1-4][a-c]?)?", tagless, re.IGNORECASE)
        if found is None:
            return None
        species = re.search("mouse|rat|hamster|human|rabbit|goat", tagless, re.IGNORECASE)
        subclass = (found[2] or "").lower()
        known = f"{species[0].lower() + ' ' if species else ''}Ig{found[1].upper()}{subclass}"
    target = f"{known} isotype control"
    return Antibody(target, spelling_key(target), why="isotype control")


GENES_OF_ANTIGEN = read_names("antigen_genes.tsv")
_GENOME_PREFIX = re.compile(r"^(?:hg|mm|GRC[hm])\d+[-_.:]+")
_GENES_OF_TARGET = {spelling_key(antigen): genes for antigen, genes in GENES_OF_ANTIGEN.items()}


def gene_key(symbol: str) -> str:
    """Return a gene symbol without genome and case, which species write differently.

    Examples
    --------
    >>> gene_key("mm10_Cd4"), gene_key("CD4")
    ('CD4', 'CD4')
    """
    return _GENOME_PREFIX.sub("", symbol).upper()


def matched_pairs(protein_names: Sequence[str], gene_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (protein, gene) of each protein and the known genes of its target.

    Parameters
    ----------
    protein_names
        Any names of antibodies; see `totalvi.harmonise_antibodies`.
    gene_names
        Gene symbols, with or without a genome (``hg19_CD4``).

    Returns
    -------
    In the order of the proteins, all genes of each that are in ``gene_names``, from `GENES_OF_ANTIGEN`.

    Examples
    --------
    >>> matched_pairs(["CD8a_TotalSeqB", "CD14 (M5E2)", "IgG1"], ["LYZ", "CD14", "CD8A"])
    [('CD8a_TotalSeqB', 'CD8A'), ('CD14 (M5E2)', 'CD14'), ('CD14 (M5E2)', 'LYZ')]
    """
    genes: dict[str, str] = {}
    for name in gene_names:
        genes.setdefault(gene_key(name), name)
    return [
        (protein, genes[gene])
        for protein in protein_names
        for gene in _GENES_OF_TARGET.get(identify(protein).key, ())
        if gene in genes
    ]
