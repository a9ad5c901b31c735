"""CITE-seq data in the format of scvi-tools."""

from pathlib import Path

import anndata
import mudata
import pandas as pd
from scipy import sparse


def read(path: Path) -> anndata.AnnData:
    """Return a MuData file as an AnnData with the protein counts in ``obsm["protein"]``."""
    mdata = mudata.read_h5mu(path)
    rna, protein = mdata["rna"], mdata["prot"]
    counts = protein.X.toarray() if sparse.issparse(protein.X) else protein.X
    adata = anndata.AnnData(rna.X, obs=rna.obs, var=rna.var)
    adata.obsm["protein"] = pd.DataFrame(counts, adata.obs_names, protein.var_names)
    return adata
