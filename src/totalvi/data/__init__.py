"""CITE-seq counts: read, find, check, describe, simulate and download them."""
