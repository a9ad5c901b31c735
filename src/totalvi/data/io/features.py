"""What features are: genes and of which genome, antibodies, isotype controls, hashtags, or none."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from totalvi.errors import ReadError, argument, did_you_mean, setting

_TYPES = {  # what annotation of features calls genes, antibodies and hashtags
    "rna": r"gex|m?rna([ _-]expression)?|genes?([ _-]expression)?|transcript(s|ome)?",
    "prot": r".*\bantibod(y|ies).*|adts?|abs?([ _-]?seq)?|prot|cite([ _-]?seq)?"
    r"|(surface[ _-])?proteins?([ _-]expression)?",
    "hto": r"multiplexing([ _-]capture)?|htos?|hash([ _-]?tags?|ing)?|cell[ _-]?hashing"
    r"|sample[ _-]?tags?",
}
_MOST_TYPES = 50
# Names that no gene has, of features in a table that has no types.
_ANTIBODY_NAME = re.compile(
    r"""\|pAbO$ | [-_ ]total-?seq[-_ ]?[abcd]?$ | ^(adt|antibody|prot|protein|cite)[_:.|-](?=\w)
        | [_:.|-](adt|antibody|prot|protein|pabo)$""",
    re.IGNORECASE | re.VERBOSE,
)


def modality_of_type(name: str) -> str:
    """Return the modality of a feature type: "rna", "prot", "hto", or a name of its own.

    Examples
    --------
    >>> [modality_of_type(name) for name in ("Antibody Capture 2", "GEX", "CRISPR Guide Capture")]
    ['prot', 'rna', 'crispr_guide_capture']
    """
    text = name.strip().lower()
    for modality, pattern in _TYPES.items():
        if re.fullmatch(pattern, text):
            return modality
    return re.sub(r"\W+", "_", text).strip("_")


def says_antibody(name: str) -> bool:
    """Whether a feature's name alone says that it is an antibody, as ``CD3_TotalSeqB`` does.

    Examples
    --------
    >>> says_antibody("CD3:UCHT1|CD3E|AHS0231|pAbO"), says_antibody("adt_CD4"), says_antibody("CD4")
    (True, True, False)
    """
    return _ANTIBODY_NAME.search(name) is not None


def modalities_of(var: pd.DataFrame) -> np.ndarray:
    """Name the modality of each feature by its type, or name; all others are genes.

    The types are those of ``var["feature_types"]``, or else of a column that tells genes from
    antibodies. A type other than genes, antibodies and multiplexing becomes a modality of its own
    name, as "CRISPR Guide Capture" becomes ``crispr_guide_capture``.
    """
    column = _type_column(var)
    if column is not None:
        types = var[column].astype(str)
        named = {text: modality_of_type(text) for text in types.unique()}
        return types.map(named).to_numpy(dtype=object)
    modality = np.full(len(var), "rna", dtype=object)
    antibodies = np.array([says_antibody(str(name)) for name in var.index], dtype=bool)
    if not antibodies.all():
        modality[antibodies] = "prot"
    return modality


def has_types(var: pd.DataFrame) -> bool:
    """Whether a column says what the features are."""
    return _type_column(var) is not None


def _type_column(var: pd.DataFrame) -> str | None:
    """Return the column with the types of the features: one that has genes and antibodies, if any."""
    usual = "feature_types"
    for name in (usual, *(column for column in var.columns if column != usual)):
        if name not in var or pd.api.types.is_numeric_dtype(var[name].dtype):
            continue
        types = pd.unique(var[name].iloc[:: max(1, len(var) // 5000)].astype(str))
        if len(types) > _MOST_TYPES:
            continue
        if {"rna", "prot"} <= {
            modality_of_type(str(text)) for text in pd.unique(var[name].astype(str))
        }:
            return str(name)
    return usual if usual in var else None


HASHTAG = re.compile(
    r"""hash[ _.-]?tag | hashing | sample[ _.-]?tag | multi-?seq
        | (?<![a-z0-9]) hto [a-z]? (?![a-z])
        | (?<![a-z0-9]) (hash|lmo) [ _.-]? \d
        | (?<![a-z0-9]) multi [ _.-]? (bc|barcode)? [ _.-]? \d
        | (?<![a-z0-9]) cmo \d{3} (?!\d)
        | (?<![a-z0-9]) (total-?seq [ _.-]?)? [abc] 0 (25[1-9]|260|30[1-9]|310) (?!\d)""",
    re.IGNORECASE | re.VERBOSE,
)

CONTROL = re.compile(
    r"""iso[ _.-]?(type|ctrl|control) | is[otype]{4,6}[ _.-]*(ctrl|control)  # and misspelt
        | ig[gmade] .* (control|ctrl)
        | (control|ctrl) .* ig[gmade]
        | ^ (?! .* anti[ _-]* ((human|mouse|rat|hamster)[ _-]*)? igg)  # anti-IgG1 is a target,
          .* ( ig[ ]?g[ _]?[1-4][a-c]? (?! \d | [ _.-]*fc)             # and so is IgG1 Fc
             | (mouse|rat|hamster|rabbit|goat) [ _.-]* ig[gm] (?! [ _.-]*fc) )""",
    re.IGNORECASE | re.VERBOSE,
)

_OWNER = r"((adt|ab|antibody|prot|protein|tag|hto|hash) [ _.:|-]+)?"
_COUNTED = r"(reads?|umis?|counts?|adts?|abs?|antibod(y|ies)|prot(eins?)?|tags?|features?)"
# What counters and tables list beside the antibodies: reads of none, and totals.
UNMAPPED = re.compile(
    rf"""{_OWNER} _*
        ( un[ _.-]?(mapped|assigned|aligned|matched|known|identified|determined|recogni[sz]ed)
              ([ _.-]?{_COUNTED})?
        | multi[ _.-]?map(ped|ping|pers?)? | mis[ _.-]?match(ed|es)? | off[ _.-]?targets? | others?
        | invalid([ _.-]?(barcodes?|{_COUNTED}))? | [*]
        | (no|not)[ _.-]?(match(ed)?|map(ped)?|feature|hit|barcode|tag|assigned|aligned|antibody)
        | bad[ _.-]?struct(ure)? | ambiguous | none | null | nan
        | no_feature | too_low_aqual | alignment_not_unique  # of htseq-count
        | {_COUNTED} [ _.-]? unmapped
        # metrics of cells, as Seurat and scanpy name them
        | n(Count|Feature)_[a-z0-9]+ | n_(genes|features|proteins)(_by_counts)? | log1p_[a-z_]*counts
        | (percent|pct)[ _.-][a-z0-9_.-]+
        )
        ([-_ ]total[ _-]?seq[ _-]?[abcd])? ([.-]\d)?  # of a name that was made unique""",
    re.IGNORECASE | re.VERBOSE,
)
TOTAL = re.compile(
    rf"""{_OWNER}
        ( (grand[ _.-]?)?total | sum | all
        | (total|sum|all|num|number|n) [ _.-]? (of[ _.-]?)? {_COUNTED} ([ _.-]?({_COUNTED}|rna))?
        | {_COUNTED} [ _.-]? (total|sum)
        )""",
    re.IGNORECASE | re.VERBOSE,
)


TRUTH_OF_TEXT = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{6,})(?:\.\d+)?")
_JOINED_ID = re.compile(  # as in ENSG00000010610_CD4 and CD4|ENSG00000010610.10
    rf"{ENSEMBL.pattern}[-_|:;](?P<behind>.+)|(?P<before>.+)[-_|:;](?:{ENSEMBL.pattern})"
)
SYMBOL_COLUMNS = (  # in lower case, letters alone; the last ones only where they hold no ids
    *("genesymbols", "genesymbol", "genenames", "genename", "featurename", "symbol", "symbols"),
    *("geneshortname", "hgncsymbol", "mgisymbol", "externalgenename", "originalgenesymbols"),
    *("gene", "genes", "name", "names", "feature", "features"),
)


def with_symbols(var: pd.DataFrame) -> pd.DataFrame:
    """Name genes that go by Ensembl ids by their symbols, where a column has these; ids are kept.

    Examples
    --------
    >>> var = pd.DataFrame({"feature_name": ["CD3E", "CD4"]}, ["ENSG00000198851", "ENSG00000010610"])
    >>> with_symbols(var)["gene_ids"].to_dict()
    {'CD3E': 'ENSG00000198851', 'CD4': 'ENSG00000010610'}
    """
    names = var.index.astype(str)
    if not any(map(ENSEMBL.search, names[:: max(1, len(names) // 500)])):
        return var
    is_id = np.array([ENSEMBL.fullmatch(name) is not None for name in names], dtype=bool)
    joined = [
        None if alone else _JOINED_ID.fullmatch(name)
        for name, alone in zip(names, is_id, strict=True)
    ]
    both = np.array([found is not None for found in joined], dtype=bool)
    column = symbol_column(var)
    if both.mean() > 0.5:  # id and symbol in one
        symbols = np.array(
            [(f["behind"] or f["before"]) if f else "" for f in joined], dtype=object
        )
        is_id = both
    elif column is not None and is_id.mean() > 0.5:
        found = var[column].astype(object).where(var[column].notna(), "")
        symbols = found.astype(str).to_numpy(object)
    else:
        return var
    known = is_id & (symbols != "")
    if "gene_ids" not in var:
        var = var.assign(gene_ids=names.to_numpy(object))
    return var.set_axis(pd.Index(np.where(known, symbols, names), dtype=object), axis=0)


def symbol_column(var: pd.DataFrame) -> str | None:
    """Return the column with the symbols of the genes, however its name is written."""
    by_word = {re.sub(r"[^a-z]", "", str(name).lower()): name for name in reversed(var.columns)}
    for name in (by_word[word] for word in SYMBOL_COLUMNS if word in by_word):
        first = var[name].iloc[:1000].dropna().astype(str)
        if first.nunique() > 0.5 * len(first) and not first.str.match(ENSEMBL).mean() > 0.5:
            return str(name)
    return None


def are_hashtags(var: pd.DataFrame, hashtags: str | Sequence[str] | None, where: str) -> np.ndarray:
    """Mark hashtag antibodies, by name or by the user's list or regular expression."""
    return _chosen(var, hashtags, HASHTAG, "hashtags", where)


def are_controls(var: pd.DataFrame, controls: str | Sequence[str] | None, where: str) -> np.ndarray:
    """Mark isotype controls, by ``var["control"]``, name, or the user's list or expression."""
    if controls is None and "control" in var:
        return marked_controls(var["control"], where)
    return _chosen(var, controls, CONTROL, "controls", where)


def are_no_antibodies(
    var: pd.DataFrame,
    leave_out: str | Sequence[str] | None,
    where: str,
    sums: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Mark rows that are of no antibody: by whole names, or by the user's list or expression.

    Those named as totals are, if they are as large as all others; ``sums`` returns each cell's sum of
    the counts of some of these rows.

    Examples
    --------
    >>> are_no_antibodies(pd.DataFrame(index=["CD3", "unmapped", "total_reads"]), None, "x").tolist()
    [False, True, False]
    """
    if leave_out is not None:
        return _chosen(var, leave_out, UNMAPPED, "leave_out", where)
    names = [name.strip() for name in var.index.astype(str)]
    found = np.array([UNMAPPED.fullmatch(name) is not None for name in names], dtype=bool)
    totals = np.array([TOTAL.fullmatch(name) is not None for name in names], dtype=bool)
    totals &= ~found
    if sums is not None and totals.any() and len(names) > totals.sum() + found.sum() + 1:
        others = sums(np.flatnonzero(~totals & ~found))
        for column in np.flatnonzero(totals):
            total = sums(np.array([column]))
            found[column] = bool((total >= 0.9 * others)[others > 0].mean() > 0.9)
    return found


def marked_controls(control: pd.Series, where: str) -> np.ndarray:
    """Read ``var["control"]``: bool, 0 and 1, or the texts of these.

    Raises
    ------
    ReadError
        If a value is neither true nor false.

    Examples
    --------
    >>> marked_controls(pd.Series(["True", "False"]), "panel.csv")
    array([ True, False])
    """
    marks = control.astype(str).str.strip().str.lower().map(TRUTH_OF_TEXT)
    unknown = np.flatnonzero(marks.isna())
    if unknown.size:
        first = unknown[0]
        raise ReadError(
            f'var["control"] of "{control.index[first]}" in {where} is "{control.iloc[first]}"; '
            "write True for isotype controls and False for the other antibodies."
        )
    return marks.to_numpy(dtype=bool)


def _chosen(
    var: pd.DataFrame,
    choice: str | Sequence[str] | None,
    default: re.Pattern[str],
    option: str,
    where: str,
) -> np.ndarray:
    """Mark the features whose name or id is in a list or matches a regular expression."""
    names = [var.index.astype(str)]
    if "gene_ids" in var:
        names.append(pd.Index(var["gene_ids"].astype(str)))
    if choice is not None and not isinstance(choice, str):
        known = names[0].union(names[-1]) if len(names) > 1 else names[0]
        for name in choice:
            if name not in known:
                raise ReadError(
                    f'{argument(option)} names "{name}", which is no antibody of {where}; '
                    f"{did_you_mean(str(name), names[0])}."
                )
        return np.asarray(np.any([index.isin(list(choice)) for index in names], axis=0))
    try:
        pattern = default if choice is None else re.compile(choice)
    except re.error as error:
        raise ReadError(
            f"{setting(option, choice)} is not a regular expression ({error}); "
            "fix it, or give a list of names."
        ) from error
    found = [[pattern.search(name) is not None for name in index] for index in names]
    marked: np.ndarray = np.any(np.array(found, dtype=bool).reshape(len(names), len(var)), axis=0)
    if choice is not None and not marked.any():
        raise ReadError(
            f"{setting(option, choice)} matches no antibody of {where}; "
            f"{did_you_mean(choice, names[0])}."
        )
    return marked


Part = TypeVar("Part")


def pick_genomes(parts: Mapping[str, Part], genome: str | None, path: Path) -> Mapping[str, Part]:
    """Return the named part, or all parts."""
    if not parts:
        raise ReadError(f"{path} holds no count matrix; give a file that Cell Ranger wrote.")
    if genome is None:
        return parts
    if genome not in parts:
        raise _no_such_genome(genome, list(parts), path)
    return {genome: parts[genome]}


def _no_such_genome(genome: str, known: list[str], path: Path) -> ReadError:
    hint = did_you_mean(genome, known)
    return ReadError(
        f'no genome "{genome}" in {path}; give another as {argument("genome")} ({hint}).'
    )


def join_genomes(parts: Mapping[str, AnnData], path: Path) -> AnnData:
    """Join the genes of all genomes.

    Cell Ranger 2 lists for each genome only the cells called in it. The result has the cells of all
    genomes, in order of first appearance. A cell has no counts of a genome that does not list it.
    """
    if len(parts) == 1:
        return next(iter(parts.values()))
    for name, part in parts.items():
        if not part.obs_names.is_unique:
            repeated = part.obs_names[part.obs_names.duplicated()][0]
            raise ReadError(
                f'{path} lists the barcode "{repeated}" twice for the genome "{name}", so that its '
                f"genomes cannot be joined; read one of them with {argument('genome')}."
            )
    cells = pd.Index(
        pd.unique(np.concatenate([part.obs_names.to_numpy(object) for part in parts.values()])),
        dtype=object,
    )
    blocks = []
    for part in parts.values():
        rows = cells.get_indexer(part.obs_names)
        entries = (np.ones(len(rows), np.float32), (rows, np.arange(len(rows))))
        blocks.append(sparse.csr_matrix(entries, shape=(len(cells), len(rows))) @ part.X)
    counts = sparse.csr_matrix(sparse.hstack(blocks, format="csr", dtype=np.float32))
    var = pd.concat([part.var for part in parts.values()])
    return AnnData(counts, obs=pd.DataFrame(index=cells), var=var)


def prefix_shared_names(adata: AnnData) -> AnnData:
    """Prefix gene names that several genomes have by their genome, as in ``mm10_ACTB``."""
    if "genome" not in adata.var or adata.var["genome"].nunique() < 2:
        return adata
    var = adata.var
    is_gene = modalities_of(var) == "rna"
    names, genomes = var.index.to_series().astype(object), var["genome"]
    n_genomes = genomes[is_gene].groupby(names.index[is_gene]).nunique()
    shared = is_gene & names.isin(n_genomes.index[n_genomes > 1]).to_numpy()
    prefixed = genomes.astype(str).to_numpy(object) + "_" + names.to_numpy(object)
    adata.var_names = pd.Index(np.where(shared, prefixed, names.to_numpy(object)), dtype=object)
    return adata


def keep_genome(adata: AnnData, genome: str | None, path: Path) -> AnnData:
    """Keep the genes of one genome and all features that are not genes.

    The genome of a gene is its ``var["genome"]``, or without this column the prefix of its name, as in
    ``hg19_CD3E``.
    """
    if genome is None:
        return adata
    is_gene = modalities_of(adata.var) == "rna"
    if "genome" in adata.var:
        genomes = adata.var["genome"].astype(str)
        chosen = is_gene & (genomes == genome).to_numpy()
        if not chosen.any():
            raise _no_such_genome(genome, sorted(set(genomes[is_gene])), path)
    else:
        chosen = is_gene & adata.var_names.str.startswith(f"{genome}_")
        if not chosen.any():
            raise ReadError(
                f"{path} names no genome, and no gene name in it begins with "
                f'"{genome}_"; leave out {argument("genome")}.'
            )
    return adata if (chosen | ~is_gene).all() else adata[:, chosen | ~is_gene].copy()
