"""Check paired counts and their annotation before any work is done with them."""

from collections.abc import Sequence

import numpy as np

from totalvi.data.checks_annotation import annotation_findings
from totalvi.data.checks_counts import protein_value_findings, rna_findings
from totalvi.data.checks_panels import panel_findings
from totalvi.data.finding import CellGroups, Finding, cell_groups, first_and_count
from totalvi.data.source import CountSource
from totalvi.data.tally import CountTally, tally_counts
from totalvi.errors import DataError

__all__ = ["TRAINING_ONLY", "Finding", "check_counts", "raise_errors"]

MINIMUM_CELLS = 10
TRAINING_ONLY = frozenset(
    {"few_cells", "group_of_one_cell", "covariate_constant", "protein_unmeasured_everywhere"}
)
"""Codes of errors that stand in the way of a fit, but not of queries to a fitted model."""


def check_counts(
    source: CountSource,
    *,
    batch_key: str | None = None,
    panel_key: str | None = None,
    labels_key: str | None = None,
    size_factor_key: str | None = None,
    categorical_covariate_keys: Sequence[str] = (),
    continuous_covariate_keys: Sequence[str] = (),
    allow_fractional: bool = False,
    tally: CountTally | None = None,
) -> list[Finding]:
    """Check counts and annotation; report everything found, errors first.

    Parameters
    ----------
    source
        What `find_counts` returned.
    batch_key, panel_key, labels_key, size_factor_key
        Columns of ``source.obs``. A protein is unmeasured in a panel (or, without ``panel_key``,
        in a batch) where all of its values there are NaN.
    categorical_covariate_keys, continuous_covariate_keys
        Further columns of ``source.obs``.
    allow_fractional
        Accept counts that are not whole numbers, such as those after ambient RNA was removed.
    tally
        What `tally_by_group` gave for the same data, where it is at hand.

    Returns
    -------
    list of Finding
        Errors, then warnings, then notes.

    Examples
    --------
    >>> from totalvi.data.simulate import simulate
    >>> from totalvi.data.source import find_counts
    >>> source = find_counts(simulate(n_cells=200, n_genes=100, n_proteins=5))
    >>> [finding.message for finding in check_counts(source, batch_key="bacth")][0]
    'batch_key: no column "bacth" in obs, did you mean "batch"? There are: "cell_type", "batch", \
"library_size"'
    """
    if tally is None:
        tally = tally_by_group(source, batch_key, panel_key)
    groups = _groups(source, batch_key, panel_key)
    counts = [
        *rna_findings(source, tally, allow_fractional=allow_fractional),
        *protein_value_findings(source, tally, allow_fractional=allow_fractional),
    ]
    findings = [
        *annotation_findings(
            source.obs,
            batch_key=batch_key,
            panel_key=panel_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
        ),
        *_cell_findings(source),
        *counts,
        *(panel_findings(source, groups, tally) if groups is not None else ()),
        _summary(source, tally, are_counts=all(finding.severity != "error" for finding in counts)),
    ]
    severities = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: severities.index(finding.severity))


def tally_by_group(source: CountSource, batch_key: str | None, panel_key: str | None) -> CountTally:
    """Read all counts once for the checks, which group cells by panel or batch."""
    groups = _groups(source, batch_key, panel_key)
    if groups is None:
        return tally_counts(source, np.zeros(len(source.obs), dtype=np.intp), 1)
    return tally_counts(source, groups.codes, len(groups.names))


def _groups(source: CountSource, batch_key: str | None, panel_key: str | None) -> CellGroups | None:
    if panel_key is not None:
        return cell_groups(source.obs, "panel", panel_key)
    return cell_groups(source.obs, "batch", batch_key)


def raise_errors(findings: Sequence[Finding]) -> None:
    """Raise `DataError` with the first error's message, if there is an error among the findings.

    Examples
    --------
    >>> raise_errors([Finding("note", "summary", "100 cells")])
    """
    errors = [finding for finding in findings if finding.severity == "error"]
    if not errors:
        return
    more = len(errors) - 1
    problems = "problem" if more == 1 else "problems"
    tail = f" (and {more} more {problems}: run `totalvi check`)" if more else ""
    raise DataError(errors[0].message + tail)


def _cell_findings(source: CountSource) -> list[Finding]:
    """Check the number of cells and the names of the cells."""
    findings = []
    n_cells = source.rna.shape[0]
    if n_cells < MINIMUM_CELLS:
        message = f"only {n_cells} cells: a model cannot be fitted to fewer than {MINIMUM_CELLS}"
        findings.append(Finding("error", "few_cells", message))
    repeated = source.cell_names[source.cell_names.duplicated()].unique()
    if len(repeated):
        findings.append(
            Finding(
                "error",
                "cell_name_repeated",
                f"several cells share {first_and_count(repeated, 'cell name')}: make the names "
                "unique, for example with obs_names_make_unique() or a prefix per sample",
            )
        )
    return findings


def _summary(source: CountSource, tally: CountTally, *, are_counts: bool) -> Finding:
    """Say how much there is: cells, genes, proteins, share of non-zeros, median counts."""
    n_cells, n_genes = source.rna.shape
    n_proteins = source.protein.shape[1]
    message = f"{n_cells:,} cells, {n_genes:,} genes and {n_proteins:,} proteins"
    if are_counts:
        rna_median = np.median(tally.rna_total)
        protein_totals = tally.protein_total[tally.protein_measured]
        protein_median = np.median(protein_totals) if len(protein_totals) else 0
        non_zero = tally.n_rna.sum() / (n_cells * n_genes)
        message += (
            f"; {100 * non_zero:.1f} % of the RNA counts are not zero; a median cell has "
            f"{rna_median:,.0f} RNA counts and {protein_median:,.0f} protein counts"
        )
    return Finding("note", "summary", message)
