"""Damaged and hostile files for every reader, and a process that survives reading them."""
