"""Differential expression: what differs between groups of cells, and how sure that is."""
