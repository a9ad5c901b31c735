"""Genes of several data sets in one order."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.data.panels.data_sets import align_genes
from totalvi.errors import DataError

IDS = {"CD4": "ENSG00000010610", "NKG7": "ENSG00000105374", "MS4A1": "ENSG00000156738"}
GENES = [f"G{i}" for i in range(12)]


def by_symbol(*symbols: str, ids: bool = False, prefix: str = "") -> pd.DataFrame:
    var = pd.DataFrame(index=[prefix + symbol for symbol in symbols])
    if ids:
        var["gene_ids"] = [IDS[symbol] for symbol in symbols]
    return var


def by_id(*symbols: str, version: str = "", names: str | None = None) -> pd.DataFrame:
    var = pd.DataFrame(index=[IDS[symbol] + version for symbol in symbols])
    if names is not None:
        var[names] = list(symbols)
    return var


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.permutations(GENES).map(lambda genes: genes[:10]), min_size=2, max_size=3),
    st.sampled_from(["inner", "outer"]),
)
def test_positions_lead_to_the_same_gene(sets, join):
    var = {str(i): by_symbol(*genes) for i, genes in enumerate(sets)}
    aligned = align_genes(var, join)
    wanted = set.intersection(*map(set, sets)) if join == "inner" else set.union(*map(set, sets))
    assert set(aligned.names) == wanted
    assert aligned.names.is_unique
    assert aligned.n_shared == len(set.intersection(*map(set, sets)))
    for name, genes in zip(var, sets, strict=True):
        for gene, position in zip(genes, aligned.positions[name], strict=True):
            assert (aligned.names[position] == gene) if position >= 0 else gene not in wanted


@pytest.mark.parametrize("prefix", ["hg19_", "GRCh38_", "GRCh38______", "hg38_", "GRCh38.p13_"])
def test_a_genome_before_all_names_is_left_out(prefix):
    aligned = align_genes(
        {"A": by_symbol("CD4", "NKG7"), "B": by_symbol("NKG7", "CD4", prefix=prefix)}, "inner"
    )
    assert aligned.names.tolist() == ["CD4", "NKG7"]
    assert aligned.positions["B"].tolist() == [1, 0]


def test_two_genomes_are_not_mixed():
    both = pd.DataFrame(index=["hg19_CD4", "mm10_CD4", "hg19_NKG7"])
    with pytest.raises(DataError, match=r'its own "hg19_CD4"'):
        align_genes({"A": by_symbol("CD4", "NKG7"), "B": both}, "inner")


def test_ids_serve_where_symbols_differ():
    old = by_symbol("CD4", "MS4A1", ids=True).rename(index={"MS4A1": "CD20"})
    aligned = align_genes({"A": old, "B": by_symbol("MS4A1", "CD4", ids=True)}, "inner")
    assert aligned.matched_by == "Ensembl id"
    assert aligned.names.tolist() == ["CD4", "CD20"]  # as the first data set says
    assert aligned.ids is not None
    assert aligned.ids.tolist() == [IDS["CD4"], IDS["MS4A1"]]
    assert aligned.positions["B"].tolist() == [1, 0]


@pytest.mark.parametrize("column", ["gene_symbols", "gene_name", "feature_name"])
def test_names_that_are_ids_are_matched_by_either(column):
    symbols, ids = by_symbol("CD4", "NKG7"), by_id("NKG7", "CD4", version=".14", names=column)
    aligned = align_genes({"A": symbols, "B": ids}, "inner")
    assert (aligned.matched_by, aligned.names.tolist()) == ("symbol", ["CD4", "NKG7"])
    assert aligned.ids is not None
    assert aligned.ids.tolist() == [IDS["CD4"], IDS["NKG7"]]
    aligned = align_genes(
        {"A": by_symbol("CD4", "NKG7", ids=True), "B": by_id("NKG7", "CD4")}, "inner"
    )
    assert (aligned.matched_by, aligned.names.tolist()) == ("Ensembl id", ["CD4", "NKG7"])


def test_symbols_against_ids_alone_is_an_error_with_the_fix():
    with pytest.raises(
        DataError, match=r'genes of "A" are known by symbol alone and those of "B" by'
    ):
        align_genes({"A": by_symbol("CD4", "NKG7"), "B": by_id("NKG7", "CD4")}, "inner")


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_a_suspiciously_small_overlap_is_an_error_with_the_fix(join):
    few = {"A": by_symbol(*GENES[:8]), "B": by_symbol(*GENES[5:])}
    with pytest.raises(DataError, match=r'"B" shares only 3 of 7 genes .* name genes alike'):
        align_genes(few, join)
    half = {"A": by_symbol(*GENES[:8]), "B": by_symbol(*GENES[4:])}
    assert align_genes(half, join).n_shared == 4


def test_the_overlap_of_all_counts():
    sets = {"A": by_symbol(*GENES[:8]), "B": by_symbol(*GENES[3:11]), "C": by_symbol(*GENES[:4])}
    with pytest.raises(DataError, match='"C" shares only 1 of 4 genes'):
        align_genes(sets, "inner")
    assert len(align_genes(sets, "outer").names) == 11


def test_repeated_names_are_an_error():
    with pytest.raises(DataError, match='data set "B" has several genes named "CD4"'):
        align_genes({"A": by_symbol("CD4"), "B": by_symbol("CD4", "CD4")}, "inner")


def test_repeated_ids_are_not_used():
    var = by_symbol("CD4", "NKG7", ids=True)
    var["gene_ids"] = IDS["CD4"]
    aligned = align_genes({"A": var, "B": by_symbol("NKG7", "CD4", ids=True)}, "inner")
    assert aligned.matched_by == "symbol"
    np.testing.assert_array_equal(aligned.positions["B"], [1, 0])
