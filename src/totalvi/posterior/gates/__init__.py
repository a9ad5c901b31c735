"""Gates: named populations of cells, defined by the levels of their markers."""
