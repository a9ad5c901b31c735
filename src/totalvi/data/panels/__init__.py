"""Antibody panels: names of antibodies and genes, and data sets of several panels joined."""
