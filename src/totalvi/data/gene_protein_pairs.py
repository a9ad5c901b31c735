"""Which genes go with an antibody: those that encode its target, and lineage genes beside them."""

import re
from collections.abc import Sequence

from totalvi.data.antibody_names import identify, spelling_key

# Antigen -> genes. The first encodes it (or is the first of its chains); where that is seldom seen in
# 3' counts, a gene of the same lineage follows: CD79A for CD19, LYZ for CD14, and CD79A, MS4A1 for B
# cells. Antigens that are isoforms of CD45 or carbohydrates have no gene whose count tells them.
GENES_OF_ANTIGEN: dict[str, tuple[str, ...]] = {
    "CD1c": ("CD1C",),
    "CD2": ("CD2",),
    "CD3": ("CD3E", "CD3D", "CD3G"),
    "CD4": ("CD4",),
    "CD5": ("CD5",),
    "CD7": ("CD7",),
    "CD8a": ("CD8A",),
    "CD8b": ("CD8B",),
    "CD9": ("CD9",),
    "CD11b": ("ITGAM",),
    "CD11c": ("ITGAX",),
    "CD13": ("ANPEP",),
    "CD14": ("CD14", "LYZ"),
    "CD16": ("FCGR3A",),
    "CD19": ("CD19", "CD79A"),
    "CD20": ("MS4A1",),
    "CD21": ("CR2",),
    "CD22": ("CD22",),
    "CD23": ("FCER2",),
    "CD24": ("CD24",),
    "CD25": ("IL2RA",),
    "CD27": ("CD27",),
    "CD28": ("CD28",),
    "CD32": ("FCGR2A", "FCGR2B"),
    "CD33": ("CD33",),
    "CD34": ("CD34",),
    "CD36": ("CD36",),
    "CD38": ("CD38",),
    "CD39": ("ENTPD1",),
    "CD40": ("CD40",),
    "CD41": ("ITGA2B",),
    "CD42b": ("GP1BA",),
    "CD44": ("CD44",),
    "CD49d": ("ITGA4",),
    "CD49f": ("ITGA6",),
    "CD54": ("ICAM1",),
    "CD56": ("NCAM1",),
    "CD57": ("B3GAT1",),
    "CD61": ("ITGB3",),
    "CD62L": ("SELL",),
    "CD64": ("FCGR1A",),
    "CD69": ("CD69",),
    "CD71": ("TFRC",),
    "CD72": ("CD72",),
    "CD73": ("NT5E",),
    "CD79b": ("CD79B",),
    "CD81": ("CD81",),
    "CD83": ("CD83",),
    "CD86": ("CD86",),
    "CD93": ("CD93",),
    "CD94": ("KLRD1",),
    "CD95": ("FAS",),
    "CD101": ("CD101",),
    "CD103": ("ITGAE",),
    "CD115": ("CSF1R",),
    "CD117": ("KIT",),
    "CD122": ("IL2RB",),
    "CD123": ("IL3RA",),
    "CD127": ("IL7R",),
    "CD134": ("TNFRSF4",),
    "CD137": ("TNFRSF9",),
    "CD138": ("SDC1",),
    "CD141": ("THBD",),
    "CD152": ("CTLA4",),
    "CD161": ("KLRB1",),
    "CD163": ("CD163",),
    "CD172a": ("SIRPA",),
    "CD183": ("CXCR3",),
    "CD184": ("CXCR4",),
    "CD185": ("CXCR5",),
    "CD194": ("CCR4",),
    "CD195": ("CCR5",),
    "CD196": ("CCR6",),
    "CD197": ("CCR7",),
    "CD223": ("LAG3",),
    "CD226": ("CD226",),
    "CD235a": ("GYPA",),
    "CD244": ("CD244",),
    "CD268": ("TNFRSF13C",),
    "CD272": ("BTLA",),
    "CD274": ("CD274",),
    "CD278": ("ICOS",),
    "CD279": ("PDCD1",),
    "CD303": ("CLEC4C",),
    "CD304": ("NRP1",),
    "CD314": ("KLRK1",),
    "CD319": ("SLAMF7",),
    "CD335": ("NCR1",),
    "CD366": ("HAVCR2",),
    "CX3CR1": ("CX3CR1",),
    "FceRIa": ("FCER1A",),
    "HLA-DR": ("HLA-DRA",),
    "IgD": ("IGHD",),
    "IgM": ("IGHM",),
    "KLRG1": ("KLRG1",),
    "TCRb": ("TRBC1", "TRBC2"),
    "TIGIT": ("TIGIT",),
}
_GENOME_PREFIX = re.compile(r"^(?:hg|mm|GRC[hm])\d+_+")


def matched_pairs(protein_names: Sequence[str], gene_names: Sequence[str]) -> list[tuple[str, str]]:
    """Return (protein, gene) for each protein whose target a gene is known to go with.

    Parameters
    ----------
    protein_names
        Names of antibodies, under any of their names; see `totalvi.harmonise_antibodies`.
    gene_names
        Gene symbols, with or without a genome (``hg19_CD4``).

    Returns
    -------
    In the order of the proteins, all genes of each that are among ``gene_names``, from
    `GENES_OF_ANTIGEN`.

    Examples
    --------
    >>> matched_pairs(["CD8a_TotalSeqB", "CD14 (M5E2)", "IgG1"], ["LYZ", "CD14", "CD8A"])
    [('CD8a_TotalSeqB', 'CD8A'), ('CD14 (M5E2)', 'CD14'), ('CD14 (M5E2)', 'LYZ')]
    """
    genes: dict[str, str] = {}
    for name in gene_names:
        genes.setdefault(_GENOME_PREFIX.sub("", name).upper(), name)
    return [
        (protein, genes[gene])
        for protein in protein_names
        for gene in _GENES_OF_TARGET.get(identify(protein).key, ())
        if gene in genes
    ]


_GENES_OF_TARGET = {spelling_key(antigen): genes for antigen, genes in GENES_OF_ANTIGEN.items()}
