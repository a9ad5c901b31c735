"""Raw means and expressing fractions against dense NumPy."""

import numpy as np

from counts import N_GENES, annotated
from totalvi.data.columns import Columns
from totalvi.data.describe import describe
from totalvi.posterior.differential.differential_tables import raw_counts


def test_means_and_fractions_over_the_cells_that_measured() -> None:
    data = describe(annotated(n_unmeasured=2), Columns(batch_key="batch"))
    group = np.arange(data.n_cells) % 4 - 1
    raw = raw_counts(data, group, 3)
    measured = np.array(data.schema.panel_measured)[data.panel]
    for groups in ((0,), (1, 2)):
        mean, fraction = raw.of(groups)
        cells = np.isin(group, groups)
        x = data.rna.rows(cells).toarray()
        np.testing.assert_allclose(mean[:N_GENES], x.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(fraction[:N_GENES], (x > 0).mean(axis=0))
        y = np.where(measured, data.protein.read(), np.nan)[cells]
        np.testing.assert_allclose(mean[N_GENES:], np.nanmean(y, axis=0), rtol=1e-6)
        expressing = np.nanmean(np.where(np.isnan(y), np.nan, y > 0), axis=0)
        np.testing.assert_allclose(fraction[N_GENES:], expressing)
    only_last = np.where(data.batch == 1, 0, -1)
    mean, _ = raw_counts(data, only_last, 1).of((0,))
    np.testing.assert_array_equal(np.isnan(mean[N_GENES:]), ~measured[data.batch == 1][0])
