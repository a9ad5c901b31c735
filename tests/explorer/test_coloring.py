"""Cells coloured by a category, however many there are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from totalvi.explorer.coloring import color_cells
from totalvi.explorer.drawn_cells import rgba
from totalvi.figures.style import BACKGROUND, category_colors


@pytest.mark.parametrize("n_categories", [59, 61, 127, 129, 300])
def test_each_cell_has_the_color_of_its_category(n_categories: int) -> None:
    names = [f"donor {i}" for i in range(n_categories)]
    donor = pd.Categorical([*names, None, *names], categories=names)
    found = color_cells(SimpleNamespace(obs=pd.DataFrame({"donor": donor})), "obs", "donor")
    expected = rgba(category_colors(n_categories))
    np.testing.assert_array_equal(found.colors, [*expected, rgba([BACKGROUND])[0], *expected])
    listed = [name for name in names if f"{name} " in found.legend or f"{name}<" in found.legend]
    assert len(listed) == min(n_categories, 60)
