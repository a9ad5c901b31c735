"""Isotype controls, which bind nothing: their counts are background and no more."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.counts import to_dense
from totalvi.data.find import CountSource, genes_and_proteins
from totalvi.data.io.features import are_controls
from totalvi.errors import DataError, Finding, did_you_mean, listed, setting

ISOTYPE_MODALITY = "isotype"


def split_controls(
    data: MuData | AnnData, source: CountSource, columns: Columns
) -> tuple[CountSource, pd.DataFrame]:
    """Separate the isotype controls from the proteins.

    Parameters
    ----------
    data, source
        The user's object and the counts found in it.
    columns
        Names the modality of the proteins and, in ``isotype_controls``, the controls; ``()`` means no
        controls. None: those marked in ``var["control"]``, or named like isotype controls.

    Returns
    -------
    The counts of the other proteins, and those of the controls, cells x controls. The controls include
    those of a modality "isotype", which `totalvi run` writes.

    Raises
    ------
    DataError
        When a name is not known, or no other protein is left.

    Examples
    --------
    >>> import numpy as np
    >>> from totalvi.data.find import find_counts
    >>> cells = AnnData(np.ones((2, 3)))
    >>> cells.obsm["adt"] = pd.DataFrame({"CD3": [9, 4], "IgG1": [1, 0]}, index=cells.obs_names)
    >>> columns = Columns(protein_expression_obsm_key="adt")
    >>> proteins, controls = split_controls(cells, find_counts(cells, columns), columns)
    >>> proteins.protein_names.tolist(), controls.columns.tolist()
    (['CD3'], ['IgG1'])
    """
    chosen = columns.isotype_controls
    is_control = _are_controls(data, source, columns.protein_modality, chosen)
    if is_control.all():
        raise DataError(
            f"all {len(is_control)} antibodies of {source.protein_where} are isotype controls "
            f"({listed(source.protein_names, at_most=2)}), and none is left to model; keep them with "
            f"{setting('isotype_controls', ())}."
        )
    names = tuple(source.protein_names[is_control])
    controls = control_counts(data, source, (*names, *_names_apart(data, names, chosen)))
    if is_control.any():
        source = source._replace(
            protein=source.protein.columns(np.flatnonzero(~is_control)),
            protein_names=source.protein_names[~is_control],
        )
    return source, controls


def control_counts(
    data: MuData | AnnData, source: CountSource, names: Sequence[str]
) -> pd.DataFrame:
    """Return the counts of those isotype controls in ``names`` that the data have, cells x controls."""
    if not names:
        return pd.DataFrame(index=source.cell_names, dtype=np.float32)
    positions = source.protein_names.get_indexer(pd.Index(names))
    found = positions[positions >= 0]
    among = pd.DataFrame(
        source.protein.columns(found).read() if len(found) else None,
        index=source.cell_names,
        columns=source.protein_names[found],
    )
    apart = _apart(data, source)
    columns = {
        name: (among if name in among else apart)[name].to_numpy()
        for name in names
        if name in among or name in apart
    }
    return pd.DataFrame(columns, index=source.cell_names, dtype=np.float32)


def control_findings(controls: pd.DataFrame) -> list[Finding]:
    """Note which antibodies are isotype controls, and their number of ``counts`` (cells, controls)."""
    if not controls.shape[1]:
        return []
    means = ", ".join(f'"{name}" {mean:.3g}' for name, mean in controls.mean().items())
    count = f"{controls.shape[1]} isotype control" + "s" * (controls.shape[1] > 1)
    message = f"kept out of the model, to check its background: {count}, with mean counts {means}."
    return [Finding("note", "isotype_controls", message)]


_SPECIES = re.compile("mouse|rat|hamster|rabbit|goat|human", re.IGNORECASE)
_SUBCLASS = re.compile(r"ig[ _-]?([gmade])[ _-]?([1-4]?)([a-c]?)", re.IGNORECASE)


def controls_like(name: str, controls: Sequence[str]) -> list[str]:
    """Return the controls of the antibody's species and class, as far as the names say them.

    If the antibody's name says neither, or no control is like it, they are all controls.

    Examples
    --------
    >>> controls = ["MouseIgG1kappaisotype", "Mouse IgG2b isotype", "RatIgG2bkIsotype"]
    >>> controls_like("CD44 (IM7, rat IgG2b)", controls)
    ['RatIgG2bkIsotype']
    >>> controls_like("CD3 mouse", controls)
    ['MouseIgG1kappaisotype', 'Mouse IgG2b isotype']
    >>> controls_like("CD3", controls) == controls
    True
    """
    found = list(controls)
    for said in (_species, _subclass):
        own = said(name)
        alike = [control for control in found if own and said(control) == own]
        found = alike or found
    return found


def _species(name: str) -> str:
    match = _SPECIES.search(name)
    return "" if match is None else match[0].lower()


def _subclass(name: str) -> str:
    match = _SUBCLASS.search(name)
    return "" if match is None or not match[2] else "".join(match.groups()).lower()


def _are_controls(
    data: MuData | AnnData, source: CountSource, protein_modality: str, chosen: Sequence[str] | None
) -> np.ndarray:
    names = source.protein_names
    if chosen is None:
        var = _protein_var(data, source, protein_modality)
        return are_controls(var, None, source.protein_where)
    for name in chosen:
        if name not in names and not (isinstance(data, MuData) and ISOTYPE_MODALITY in data.mod):
            raise DataError(
                f'isotype_controls holds "{name}", which is no protein of {source.protein_where}; '
                f"{did_you_mean(str(name), names)}."
            )
    return np.asarray(names.isin(list(chosen)))


def _protein_var(
    data: MuData | AnnData, source: CountSource, protein_modality: str
) -> pd.DataFrame:
    """Return the names of the proteins and, where the data mark controls, the marks."""
    var = pd.DataFrame(index=source.protein_names)
    if isinstance(data, MuData):
        annotation = data[protein_modality].var
    else:
        annotation = data.var[genes_and_proteins(data.var)[1]]
    if "control" not in annotation:
        return var
    if len(annotation) == len(var):
        return var.assign(control=annotation["control"].to_numpy())
    named = annotation.set_axis(annotation.index.astype(str))  # some are set apart
    known = named.index.is_unique and var.index.isin(named.index).all()
    return var.assign(control=named["control"].loc[var.index]) if known else var


def _apart(data: MuData | AnnData, source: CountSource) -> pd.DataFrame:
    """Return the counts of the modality of isotype controls, if it has the same cells."""
    if not isinstance(data, MuData) or ISOTYPE_MODALITY not in data.mod:
        return pd.DataFrame(index=source.cell_names)
    adata = data[ISOTYPE_MODALITY]
    if not np.array_equal(adata.obs_names, source.cell_names):
        return pd.DataFrame(index=source.cell_names)
    where = f'modality "{ISOTYPE_MODALITY}"'
    counts = to_dense(adata.X, where, adata.obs_names, adata.var_names)
    return pd.DataFrame(counts, index=source.cell_names, columns=adata.var_names)


def _names_apart(
    data: MuData | AnnData, names: Sequence[str], chosen: Sequence[str] | None
) -> list[str]:
    if not isinstance(data, MuData) or ISOTYPE_MODALITY not in data.mod:
        return []
    apart = [str(name) for name in data[ISOTYPE_MODALITY].var_names if name not in names]
    return apart if chosen is None else [name for name in apart if name in chosen]
