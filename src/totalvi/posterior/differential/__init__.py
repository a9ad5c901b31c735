"""Differential expression between groups of cells, with its uncertainty."""
