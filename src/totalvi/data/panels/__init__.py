"""Antibody panels: names of antibodies and genes, and joining of data sets with several panels."""
