"""Total variational inference for CITE-seq: a joint model of a cell's RNA and surface proteins."""
