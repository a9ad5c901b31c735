"""Which batches the proteins of a mapped query are imputed from, and with what they are compared."""

import numpy as np
import pandas as pd
import pytest
import torch
from mudata import MuData

import totalvi
from counts import SMALL, annotated
from totalvi.errors import NotTrainedError

NOWHERE, IN_ONE = 0, 1  # of the query's batches


def with_gaps(cells: MuData, gaps: dict[str, list[int]]) -> MuData:
    """Return the cells without the proteins at these positions, by batch."""
    values = cells["prot"].X.astype(np.float32)
    values = values.toarray() if hasattr(values, "toarray") else values.copy()
    for batch, proteins in gaps.items():
        values[np.ix_((cells.obs["batch"] == batch).to_numpy(), proteins)] = np.nan
    cells["prot"].X = values
    return cells


def fitted(gaps: dict[str, list[int]], panel_key: str | None) -> totalvi.Model:
    cells = with_gaps(annotated()[:80].copy(), gaps)
    model = totalvi.Model(cells, batch_key="batch", panel_key=panel_key, **SMALL)
    model.train(max_epochs=2, accelerator="cpu", train_size=0.7, progress=False)
    return model


def mapped(reference: totalvi.Model) -> totalvi.Model:
    """Return a query whose second batch lacks one protein, and both another."""
    gaps = {"batch_0": [NOWHERE], "batch_1": [NOWHERE, IN_ONE]}
    return reference.map_query(with_gaps(annotated()[80:].copy(), gaps))


@pytest.fixture(scope="module", params=["a panel lacks it", "panels", "batches"])
def reference(request: pytest.FixtureRequest) -> totalvi.Model:
    gaps = {"batch_1": [NOWHERE]} if request.param == "a panel lacks it" else {}
    return fitted(gaps, None if request.param == "batches" else "batch")


def change_batch(query: totalvi.Model, batch: str) -> None:
    """Let the background decoded into a batch of the query grow."""
    weight = query.module.decoder.background_mean_head.covariate_weight
    with torch.no_grad():
        weight[query.schema.batch_names.index(batch)] += 2


def mean_of(
    query: totalvi.Model, proteins: list[str] | None = None, *, own_level: bool | None = None
) -> pd.DataFrame:
    return query.impute_proteins(
        protein_list=proteins, n_samples=4, calibrated=False, own_level=own_level
    ).mean


def test_a_protein_is_imputed_alike_alone_and_beside_others(reference: totalvi.Model) -> None:
    query = mapped(reference)
    change_batch(query, "batch_0 (query)")
    together = mean_of(query)
    for name in query.schema.protein_names:
        pd.testing.assert_frame_equal(mean_of(query, [name]), together[[name]], rtol=1e-5)


def test_the_references_batches_count_where_they_measured(reference: totalvi.Model) -> None:
    query = mapped(reference)
    name = query.schema.protein_names[NOWHERE]
    own = reference.schema.panel_measured[1][NOWHERE] is False
    _, expected = query.get_normalized_expression(
        protein_list=[name], gene_list=[], include_protein_background=True, n_samples=4,
        transform_batch=None if own else ["batch_0", "batch_1"], unmeasured="impute",
    )  # fmt: skip
    pd.testing.assert_frame_equal(mean_of(query, [name], own_level=False), expected, rtol=1e-4)


def test_reliability_is_of_the_batches_that_imputation_decodes(reference: totalvi.Model) -> None:
    query = mapped(reference)
    names = query.schema.protein_names
    before = reference.get_query_reliability(query, n_samples=10).xs("batch_1 (query)")
    assert list(before.index) == [names[NOWHERE], names[IN_ONE]]
    change_batch(query, "batch_0 (query)")  # which one protein is imputed from
    after = reference.get_query_reliability(query, n_samples=10).xs("batch_1 (query)")
    one, other = (after["model_pearson"] - before["model_pearson"]).abs()
    assert one == 0 < other


def test_no_query_is_filled_in_from_a_background_that_went_wrong() -> None:
    reference = fitted({}, None)
    reference.module.decoder.background_mean_head.bias.data[NOWHERE] += 60
    with pytest.raises(NotTrainedError, match='"protein_0" is beyond 1e13 counts'):
        mapped(reference)
