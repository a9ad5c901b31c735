"""Isotype controls: antibodies that bind nothing, whose counts are background and no more."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.columns import Columns
from totalvi.data.counts import to_dense
from totalvi.data.find import CountSource, genes_and_proteins
from totalvi.data.finding import Finding, did_you_mean, listed
from totalvi.data.io.antibody_rows import are_controls
from totalvi.errors import DataError

ISOTYPE_MODALITY = "isotype"


def split_controls(
    data: MuData | AnnData, source: CountSource, columns: Columns
) -> tuple[CountSource, pd.DataFrame]:
    """Take the isotype controls out of the proteins.

    Parameters
    ----------
    data, source
        The user's object and the counts found in it.
    columns
        Names the modality of the proteins and, in ``isotype_controls``, the controls; none of them:
        ``()``. None: those marked in ``var["control"]``, or named so.

    Returns
    -------
    The counts of the other proteins, and those of the controls, cells x controls: those taken out,
    and those of a modality "isotype", as `totalvi run` writes it.

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
            f"({listed(source.protein_names, at_most=2)}), and none is left to model: keep them with "
            "isotype_controls=()"
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
    """Return the counts of isotype controls, cells x those of ``names`` that the data have."""
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
    """Note which antibodies are isotype controls, and how many counts (cells, controls) they have."""
    if not controls.shape[1]:
        return []
    means = ", ".join(f'"{name}" {mean:.3g}' for name, mean in controls.mean().items())
    count = f"{controls.shape[1]} isotype control" + "s" * (controls.shape[1] > 1)
    message = f"kept out of the model, to check its background: {count}, with mean counts {means}"
    return [Finding("note", "isotype_controls", message)]


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
                f'isotype_controls holds "{name}", which is no protein of {source.protein_where}: '
                f"{did_you_mean(str(name), names)}"
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
    if "control" in annotation and len(annotation) == len(var):
        var["control"] = annotation["control"].to_numpy()
    return var


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
