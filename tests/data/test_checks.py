"""check_counts: each fault gets one sentence that names the place and the fix."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from totalvi.data.checks import TRAINING_ONLY, Finding, check_counts, raise_errors
from totalvi.data.columns import Columns
from totalvi.data.counts import CountsInMemory
from totalvi.data.find import CountSource, find_counts
from totalvi.errors import DataError

N, G, T = 60, 210, 5


@pytest.fixture
def clean() -> CountSource:
    rng = np.random.default_rng(0)
    cells = pd.Index([f"cell_{i}" for i in range(N)])
    obs = pd.DataFrame(
        {
            "batch": np.repeat(["a", "b", "c"], N // 3),
            "panel": np.repeat(["full", "short"], N // 2),
            "depth": np.linspace(1.0, 2.0, N),
            "site": pd.Categorical(["x", "y"] * (N // 2)),
        },
        index=cells,
    )
    return CountSource(
        rna=CountsInMemory(sparse.csr_matrix(rng.poisson(1.0, (N, G)).astype(np.float32))),
        protein=CountsInMemory(rng.poisson(30, (N, T)).astype(np.float32)),
        gene_names=pd.Index([f"gene_{i}" for i in range(G)]),
        protein_names=pd.Index(["CD3", "CD4", "CD8", "CD19", "IgG1"]),
        cell_names=cells,
        obs=obs,
        rna_where='modality "rna"',
        protein_where='modality "prot"',
    )


def with_rna(source: CountSource, rna: sparse.csr_matrix) -> CountSource:
    return source._replace(rna=CountsInMemory(rna))


def with_protein(source: CountSource, protein: np.ndarray) -> CountSource:
    return source._replace(protein=CountsInMemory(protein))


def rna_at(source: CountSource, value: float, cell: int = 7, gene: int = 3) -> CountSource:
    dense = source.rna.read().toarray().astype(np.float64)
    dense[cell, gene] = value
    return with_rna(source, sparse.csr_matrix(dense))


def protein_at(source: CountSource, value: float, cells=7, protein=1) -> CountSource:
    changed = source.protein.read().copy()
    changed[cells, protein] = value
    return with_protein(source, changed)


def obs_with(source: CountSource, **columns) -> CountSource:
    return source._replace(obs=source.obs.assign(**columns))


def map_rna(source: CountSource, function) -> CountSource:
    return with_rna(source, sparse.csr_matrix(function(source.rna.read().toarray())))


def map_protein(source: CountSource, function) -> CountSource:
    return with_protein(source, function(source.protein.read()))


def to_total(x: np.ndarray) -> np.ndarray:
    return x / x.sum(axis=1, keepdims=True) * 10_000


def centred(x: np.ndarray) -> np.ndarray:
    return np.log1p(x) - np.log1p(x).mean(axis=1, keepdims=True)


def first_cells(source: CountSource, n: int) -> CountSource:
    return source._replace(
        rna=CountsInMemory(source.rna.rows(slice(n))),
        protein=CountsInMemory(source.protein.rows(slice(n))),
        cell_names=source.cell_names[:n],
        obs=source.obs.iloc[:n],
    )


def first_genes(source: CountSource, n: int) -> CountSource:
    return source._replace(rna=source.rna.columns(np.arange(n)), gene_names=source.gene_names[:n])


def threefold(source: CountSource) -> CountSource:
    names = pd.Index([f"cell_{i}" for i in range(3 * N)])
    return source._replace(
        rna=CountsInMemory(sparse.vstack([source.rna.read()] * 3, format="csr")),
        protein=CountsInMemory(np.vstack([source.protein.read()] * 3)),
        cell_names=names,
        obs=pd.DataFrame(index=names),
    )


def renamed(names: pd.Index, **changes: str) -> pd.Index:
    return names.map(lambda name: changes.get(name, name))


BATCH = {"batch_key": "batch"}
# Each case: what is wrong, how the data are spoiled, arguments, code, words in the message.
ERRORS = [
    ("RNA negative", lambda s: rna_at(s, -2), {}, "rna_negative", ["-2", "cell_7", "gene_3", "rna"]),
    ("RNA NaN", lambda s: rna_at(s, np.nan), {}, "rna_nan", ["cell_7", "gene_3", '"rna"']),
    ("RNA infinite", lambda s: rna_at(s, np.inf), {}, "rna_infinite", ["cell_7", "gene_3"]),
    ("RNA fractional", lambda s: rna_at(rna_at(s, 30), 0.37, 9), {}, "rna_fractional",
     ["0.37", "cell_9", "gene_3", "allow_fractional=True"]),
    ("RNA log-normalised", lambda s: map_rna(s, lambda x: np.log1p(to_total(x))), {},
     "rna_normalised", ["looks log-normalised", 'rna_layer="counts"']),
    ("RNA log2", lambda s: map_rna(s, lambda x: np.log2(1 + to_total(x))), {},
     "rna_normalised", ["looks log-normalised"]),
    ("RNA log-normalised, layer known",
     lambda s: map_rna(s, lambda x: np.log1p(to_total(x)))._replace(rna_layers=("raw_counts",)),
     {}, "rna_normalised", ['rna_layer="raw_counts"']),
    ("RNA of common total", lambda s: map_rna(s, to_total), {}, "rna_normalised",
     ["normalised to a common total"]),
    ("RNA scaled", lambda s: map_rna(s, lambda x: x - x.mean(axis=0)), {}, "rna_negative",
     ["looks scaled", "raw counts"]),
    ("RNA too high", lambda s: rna_at(s, 2.0**24 + 2), {}, "rna_too_high",
     ["16,777,218", "cell_7", "gene_3"]),
    ("cell without RNA", lambda s: map_rna(s, lambda x: x * (np.arange(N) != 4)[:, None]), {},
     "cell_without_rna", ["cell_4", "totalvi run"]),
    ("protein negative", lambda s: protein_at(s, -1), {}, "protein_negative",
     ["-1", "cell_7", "CD4", '"prot"']),
    ("protein infinite", lambda s: protein_at(s, np.inf), {}, "protein_infinite", ["cell_7", "CD4"]),
    ("protein fractional", lambda s: protein_at(s, 2.5), {}, "protein_fractional",
     ["2.5", "cell_7", "CD4"]),
    ("protein CLR", lambda s: map_protein(s, centred), {}, "protein_negative",
     ["CLR", "dsb", "raw counts"]),
    ("protein log", lambda s: map_protein(s, np.log1p), {}, "protein_normalised",
     ["log- or CLR-normalised"]),
    ("protein log in obsm",
     lambda s: map_protein(s, np.log1p)._replace(protein_where='obsm["adt"]'), {},
     "protein_normalised", ['obsm["adt"]', "protein_expression_obsm_key"]),
    ("protein too high", lambda s: protein_at(s, 1e9), {}, "protein_too_high", ["CD4", "cell_7"]),
    ("protein partly NaN", lambda s: protein_at(s, np.nan, [7, 9]), {},
     "protein_partly_unmeasured", ["CD4", "2 of 60", "cell_7", "panel_key"]),
    ("protein partly NaN in batch", lambda s: protein_at(s, np.nan, slice(0, 25)), BATCH,
     "protein_partly_unmeasured", ["CD4", 'batch "b"', "5 of 20", "cell_20"]),
    ("whole batches NaN, but panel given", lambda s: protein_at(s, np.nan, slice(0, 20)),
     {**BATCH, "panel_key": "panel"}, "protein_partly_unmeasured", ['panel "full"', "20 of 30"]),
    ("cell all NaN", lambda s: protein_at(s, np.nan, 3, slice(None)), BATCH,
     "protein_partly_unmeasured", ["cell_3", "CD3"]),
    ("protein NaN everywhere", lambda s: protein_at(s, np.nan, slice(None)), BATCH,
     "protein_unmeasured_everywhere", ["CD4", "remove"]),
    ("same cell twice",
     lambda s: s._replace(cell_names=renamed(s.cell_names, cell_5="cell_2", cell_6="cell_2")), {},
     "cell_name_repeated", ["cell_2", "obs_names_make_unique"]),
    ("same gene twice", lambda s: s._replace(gene_names=renamed(s.gene_names, gene_5="gene_2")), {},
     "gene_name_repeated", ["gene_2", '"rna"', "var_names_make_unique"]),
    ("same protein twice", lambda s: s._replace(protein_names=renamed(s.protein_names, CD4="CD3")),
     {}, "protein_name_repeated", ["CD3", '"prot"']),
    ("few cells", lambda s: first_cells(s, 9), {}, "few_cells", ["9 cells", "10"]),
    ("no such batch", lambda s: s, {"batch_key": "bach"}, "key_missing",
     ["batch_key", '"bach"', 'did you mean "batch"']),
    ("no such covariate", lambda s: s, {"continuous_covariate_keys": ["Depth"]}, "key_missing",
     ["continuous_covariate_keys", 'did you mean "depth"']),
    ("no such size factor", lambda s: s, {"size_factor_key": "size"}, "key_missing",
     ["size_factor_key"]),
    ("batch missing in a cell",
     lambda s: obs_with(s, batch=s.obs["batch"].where(s.obs.index != "cell_8")), BATCH,
     "value_missing", ["batch_key", "cell_8"]),
    ("label missing",
     lambda s: obs_with(s, site=s.obs["site"].where(s.obs.index != "cell_8")),
     {"labels_key": "site"}, "value_missing", ["labels_key", "cell_8"]),
    ("batch of one cell",
     lambda s: obs_with(s, batch=s.obs["batch"].where(s.obs.index != "cell_8", "d")), BATCH,
     "group_of_one_cell", ['batch "d"', "cell_8", "merge"]),
    ("panel of one cell",
     lambda s: obs_with(s, panel=s.obs["panel"].where(s.obs.index != "cell_8", "d")),
     {"panel_key": "panel"}, "group_of_one_cell", ['panel "d"', "cell_8"]),
    ("batch continuous",
     lambda s: obs_with(threefold(s), batch=np.linspace(0, 1, 3 * N).round(2)), BATCH,
     "category_continuous", ["batch_key", "looks continuous", "101"]),
    ("batch per cell", lambda s: obs_with(s, batch=list(s.cell_names)), BATCH,
     "category_per_cell", ["batch_key", "every one of the 60 cells"]),
    ("1 and '1'", lambda s: obs_with(s, batch=[1, "1"] * (N // 2)), BATCH,
     "category_ambiguous", ['"1"', "astype(str)"]),
    ("covariate text", lambda s: s, {"continuous_covariate_keys": ["batch"]}, "not_numeric",
     ["continuous_covariate_keys", '"batch"', '"a"']),
    ("covariate category", lambda s: s, {"continuous_covariate_keys": ["site"]}, "not_numeric",
     ["categorical covariate"]),
    ("covariate NaN", lambda s: obs_with(s, depth=s.obs["depth"].where(s.obs.index != "cell_8")),
     {"continuous_covariate_keys": ["depth"]}, "value_missing", ["depth", "cell_8"]),
    ("covariate infinite", lambda s: obs_with(s, depth=s.obs["depth"].replace(1.0, np.inf)),
     {"continuous_covariate_keys": ["depth"]}, "value_infinite", ["depth", "cell_0"]),
    ("covariate constant", lambda s: obs_with(s, depth=3.5),
     {"continuous_covariate_keys": ["depth"]}, "covariate_constant", ["depth", "3.5"]),
    ("keys as text", lambda s: s, {"categorical_covariate_keys": "site"}, "keys_not_a_list",
     ["categorical_covariate_keys", '["site"]']),
    ("size factor zero", lambda s: obs_with(s, depth=s.obs["depth"].replace(1.0, 0.0)),
     {"size_factor_key": "depth"}, "size_factor_not_positive", ["depth", "cell_0"]),
    ("size factor text", lambda s: s, {"size_factor_key": "batch"}, "not_numeric",
     ["size_factor_key"]),
]  # fmt: skip

WARNINGS = [
    ("gene zero", lambda s: map_rna(s, lambda x: x * (np.arange(G) != 3)), {}, "gene_zero",
     ["gene_3", "remove"]),
    ("few genes", lambda s: first_genes(s, 20), {},
     "few_genes", ["20 genes"]),
    ("RNA binary", lambda s: map_rna(s, lambda x: (x > 0).astype(np.float32)), {}, "rna_binary",
     ["above 1"]),
    ("RNA high", lambda s: rna_at(s, 70_000), {}, "rna_high", ["70,000", "cell_7", "gene_3"]),
    ("protein high", lambda s: protein_at(s, 700_000), {}, "protein_high", ["700,000", "CD4"]),
    ("protein zero", lambda s: protein_at(s, 0, slice(None)), {}, "protein_zero", ["CD4", "remove"]),
    ("protein zero in a batch", lambda s: protein_at(s, 0, slice(0, 20)), BATCH,
     "protein_zero_in_group", ["CD4", 'batch "a"', "NaN"]),
    ("protein constant", lambda s: protein_at(s, 12, slice(None)), {}, "protein_constant", ["CD4"]),
    ("cell without protein",
     lambda s: map_protein(s, lambda x: x * (np.arange(N) != 4)[:, None]), {},
     "cell_without_protein", ["cell_4"]),
    ("small batch",
     lambda s: obs_with(s, batch=["d"] * 5 + list(s.obs["batch"][5:])), BATCH, "group_small",
     ['batch "d"', "5 cells"]),
    ("covariate without effect", lambda s: obs_with(s, site="x"),
     {"categorical_covariate_keys": ["site"]}, "covariate_constant_category", ['"site"', '"x"']),
    ("allowed but log-normalised", lambda s: map_rna(s, lambda x: np.log1p(to_total(x))),
     {"allow_fractional": True}, "rna_normalised", ["looks log-normalised"]),
]  # fmt: skip


def table(severity, cases):
    return [pytest.param(severity, *case[1:], id=case[0]) for case in cases]


@pytest.mark.parametrize(
    ("severity", "spoil", "arguments", "code", "words"),
    table("error", ERRORS) + table("warning", WARNINGS),
)
def test_each_fault_is_named_once(clean, severity, spoil, arguments, code, words):
    findings = check_counts(spoil(clean), Columns(**arguments))
    found = [f for f in findings if f.severity == severity and f.code == code]
    assert len(found) == 1, [f.code for f in findings]
    for word in words:
        assert word in found[0].message
    assert "\n" not in found[0].message
    same_severity = [f.code for f in findings if f.severity == severity]
    assert same_severity == [code], "no other finding is to distract from this one"
    if severity == "error":
        with pytest.raises(DataError) as caught:
            raise_errors(findings)
        assert str(caught.value) == found[0].message
    else:
        raise_errors(findings)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        BATCH,
        {
            "batch_key": "batch",
            "panel_key": "panel",
            "labels_key": "site",
            "size_factor_key": "depth",
            "categorical_covariate_keys": ["site"],
            "continuous_covariate_keys": ["depth"],
        },
    ],
)
def test_nothing_is_wrong_with_clean_counts(clean, arguments):
    findings = check_counts(clean, Columns(**arguments))
    assert {f.severity for f in findings} == {"note"}
    raise_errors(findings)


def test_the_summary_gives_sizes_and_medians(clean):
    message = next(f.message for f in check_counts(clean, Columns()) if f.code == "summary")
    non_zero = 100 * clean.rna.read().nnz / (N * G)
    assert f"{N} cells, {G} genes and {T} proteins" in message
    assert f"{non_zero:.1f} %" in message
    assert f"{np.median(clean.rna.read().toarray().sum(axis=1)):.0f} RNA counts" in message
    assert f"{np.median(clean.protein.read().sum(axis=1)):.0f} protein counts" in message


@pytest.mark.parametrize(("key", "group"), [("batch_key", "batch"), ("panel_key", "panel")])
def test_a_protein_may_be_unmeasured_in_a_whole_group(clean, key, group):
    first = clean.obs[group] == clean.obs[group].iloc[0]
    findings = check_counts(protein_at(clean, np.nan, first.to_numpy()), Columns(**{key: group}))
    raise_errors(findings)
    note = next(f for f in findings if f.code == "protein_unmeasured")
    assert f'{group} "{clean.obs[group].iloc[0]}"' in note.message
    assert '"CD4"' in note.message
    assert not [f for f in findings if f.severity == "warning"]


def test_a_batch_without_any_protein_is_no_error(clean):
    first = (clean.obs["batch"] == "a").to_numpy()
    findings = check_counts(
        protein_at(clean, np.nan, first, slice(None)), Columns(batch_key="batch")
    )
    raise_errors(findings)
    assert "cell_without_protein" not in {f.code for f in findings}
    assert "5 of 5 proteins" in next(f for f in findings if f.code == "protein_unmeasured").message


def test_a_missing_key_does_not_bring_false_faults_of_the_panels(clean):
    findings = check_counts(protein_at(clean, np.nan, slice(0, 20)), Columns(batch_key="bacth"))
    assert [f.code for f in findings if f.severity == "error"] == ["key_missing"]


def test_fractions_are_accepted_on_request(clean):
    halves = protein_at(rna_at(rna_at(clean, 30), 0.37, 9), 2.5)
    findings = check_counts(halves, Columns(allow_fractional=True))
    assert {f.severity for f in findings} == {"note"}
    assert {f.code for f in findings} >= {"rna_fractional", "protein_fractional"}


def test_a_gene_and_a_protein_may_share_a_name(clean):
    raise_errors(
        check_counts(clean._replace(gene_names=renamed(clean.gene_names, gene_0="CD4")), Columns())
    )


def test_integers_and_booleans_are_counts(clean):
    for dtype in (np.int64, np.uint16, np.int8):
        raise_errors(check_counts(with_rna(clean, clean.rna.read().astype(dtype)), Columns()))
    binary = check_counts(with_rna(clean, clean.rna.read().astype(bool)), Columns())
    assert [f.code for f in binary if f.severity == "warning"] == ["rna_binary"]


def test_stored_zeros_are_zeros(clean):
    rna = clean.rna.read().copy()
    rna.data[rna.indptr[4] : rna.indptr[5]] = 0
    findings = check_counts(with_rna(clean, rna), Columns())
    assert [f.code for f in findings if f.severity == "error"] == ["cell_without_rna"]


def test_the_place_of_a_value_is_right_wherever_it_is(clean):
    rng = np.random.default_rng(1)
    for cell, gene in zip(rng.integers(N, size=20), rng.integers(G, size=20), strict=True):
        message = check_counts(rna_at(clean, -5, cell, gene), Columns())[0].message
        assert f'cell "cell_{cell}", gene "gene_{gene}"' in message


def test_many_faults_are_counted_and_the_first_raised(clean):
    spoiled = protein_at(rna_at(clean, -1), -1)
    with pytest.raises(DataError, match=r"\"rna\".*\(and 1 more problem; run `totalvi check`\)\.$"):
        raise_errors(check_counts(spoiled, Columns()))
    with pytest.raises(DataError, match=r"\"x\".*\(and 2 more problems; run `totalvi check`\)\.$"):
        raise_errors(check_counts(spoiled, Columns(batch_key="x")))


def test_findings_come_errors_first(clean):
    spoiled = rna_at(protein_at(clean, 0, slice(None)), -1)
    severities = [f.severity for f in check_counts(spoiled, Columns(batch_key="batch"))]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_the_checks_change_nothing(clean):
    rna, protein = clean.rna.read().copy(), clean.protein.read().copy()
    obs = clean.obs.copy()
    check_counts(clean, Columns(batch_key="batch", continuous_covariate_keys=["depth"]))
    np.testing.assert_array_equal(rna.data, clean.rna.read().data)
    np.testing.assert_array_equal(rna.indices, clean.rna.read().indices)
    np.testing.assert_array_equal(protein, clean.protein.read())
    pd.testing.assert_frame_equal(obs, clean.obs)


def test_errors_of_training_alone_have_known_codes():
    assert {case[3] for case in ERRORS} >= TRAINING_ONLY


def test_raise_errors_passes_over_warnings():
    raise_errors([Finding("warning", "gene_zero", "a gene is zero")])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "batch"), [("pbmc10k", None), ("bmmc_134proteins", "batch")])
def test_real_counts_pass(shared, name, batch):
    import mudata

    source = find_counts(mudata.read_h5mu(shared / "data" / f"{name}.h5mu"), Columns())
    raise_errors(check_counts(source, Columns(batch_key=batch)))
