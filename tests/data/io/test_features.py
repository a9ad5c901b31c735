import pandas as pd
import pytest

from totalvi.data.io.features import are_controls, are_hashtags, marked_controls, modalities_of
from totalvi.errors import ReadError

CONTROLS = """IgG1|IgG2a|IgG2b|IgG2a_control_TotalSeqB|isotype|Mouse IgG1 kappa|Rat IgG2b|IgG4
MouseIgG1kappaisotype_PROT|Rat-IgG2b|Rag-IgG2c|RatIgG1kappaIsotypeControl-A0236|HamsterIgG_1
Armenian Hamster IgG Isotype Ctrl|IgG_control|isotype_MOPC-21|anti-Mouse IgG1 isotype Ctrl
IgM isotype|Mouse IgG1, κ Isotype Ctrl|mouse_IgG2a_ctrl|Isotype_RTK4530|IsoCtrl|NegCtrl_IgG1
IgG2a, k|Mouse-IgG2a-TotalSeqA"""
TARGETS = """IgM|IgD|IgA|IgE|IgG|IgG Fc|anti-human IgG Fc|IgG1 Fc|anti-IgG1|anti-human IgG1|CD3
anti-human IgD|anti-human IgM|FceRIa|FcgR1|CD32|IgLight chain|Ig light chain kappa|TIGIT|IGHG1
CD16|SIGLEC1|CD158e1|VISTA|CD107a"""
HASHTAGS = """HTO_A|HTO-1|HTO44_5P|HTO1|B_HTO2|hashtag1|Hashtag_1|anti-human_Hashtag_1|CMO301
TotalSeq-A0251 anti-human Hashtag 1|Hashtag1_TotalSeqB|MULTI-seq_1|MULTIseq3|sample hash-tag 2"""
NOT_HASHTAGS = "CD3|CHTOP|PhoTo|NHTO1|CMO1|HLA-DR|CD45|hash|multi|CD158b|Photon1|IgG1_control"


def names(text: str) -> list[str]:
    return text.replace("\n", "|").split("|")


def var(features: list[str], ids: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame({"gene_ids": ids or features}, index=features)


@pytest.mark.parametrize(
    ("mark", "features", "expected"),
    [
        *((are_controls, name, True) for name in names(CONTROLS)),
        *((are_controls, name, False) for name in names(TARGETS) + names(HASHTAGS)),
        *((are_hashtags, name, True) for name in names(HASHTAGS)),
        *((are_hashtags, name, False) for name in names(NOT_HASHTAGS) + names(TARGETS)),
    ],
)
def test_known_by_name(mark, features, expected):
    assert mark(var([features]), None, "x.h5").tolist() == [expected]


def test_known_by_id():
    assert are_hashtags(var(["donor A", "CD3"], ["HTO_1", "CD3"]), None, "x").tolist() == [
        True,
        False,
    ]


@pytest.mark.parametrize("mark", [are_controls, are_hashtags])
@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ([], [False, False, False]),
        ((), [False, False, False]),
        (["CD3"], [True, False, False]),
        (["CD3", "A3"], [True, False, True]),
        ("^CD", [True, True, False]),
        ("(?i)a3", [False, False, True]),
    ],
)
def test_chosen_by_the_user(mark, choice, expected):
    table = var(["CD3", "CD4", "HTO_IgG1"], ["A1", "A2", "A3"])
    assert mark(table, choice, "x.h5").tolist() == expected


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (["CD3", "CD5x"], 'names "CD5x", which is no antibody of x.h5; did you mean "CD5"'),
        ("^HTO", '="^HTO" matches no antibody of x.h5; there are'),
        ("(", r'="(" is not a regular expression'),
    ],
)
def test_choice_that_does_not_fit(choice, message):
    with pytest.raises(ReadError) as caught:
        are_hashtags(var(["CD3", "CD5"]), choice, "x.h5")
    assert message in str(caught.value)


def test_controls_already_marked_are_kept():
    table = var(["CD3", "IgG1"]).assign(control=[True, False])
    assert are_controls(table, None, "x").tolist() == [True, False]
    assert are_controls(table, ["IgG1"], "x").tolist() == [False, True]


@pytest.mark.parametrize(
    "written",
    [
        [True, False],
        [1, 0],
        [1.0, 0.0],
        ["True", "False"],
        ["true ", "FALSE"],
        ["1", "0"],
        pd.Categorical(["True", "False"]),
        pd.array([True, False], dtype="boolean"),
    ],
)
def test_controls_are_marked_in_any_spelling(written):
    table = var(["IgG1", "CD3"]).assign(control=written)
    assert marked_controls(table["control"], "x").tolist() == [True, False]
    assert are_controls(table[::-1], None, "x").tolist() == [False, True]


@pytest.mark.parametrize("value", ["yes", 2, None, float("nan"), ""])
def test_a_control_that_is_neither_true_nor_false_is_named(value):
    table = var(["IgG1", "CD3"]).assign(control=pd.Series([True, value], ["IgG1", "CD3"], object))
    with pytest.raises(ReadError, match=r'var\["control"\] of "CD3" in x.h5'):
        are_controls(table, None, "x.h5")
    assert are_controls(table, ["IgG1"], "x.h5").tolist() == [True, False]


def test_modalities_by_feature_type():
    types = ["Gene Expression", "GEX", "Antibody Capture", "ADT", "Multiplexing Capture", "Peaks",
             "CRISPR Guide Capture"]  # fmt: skip
    expected = ["rna", "rna", "prot", "prot", "hto", "peaks", "crispr_guide_capture"]
    assert modalities_of(pd.DataFrame({"feature_types": types})).tolist() == expected
    assert modalities_of(pd.DataFrame(index=["CD3", "HTO_1"])).tolist() == ["rna", "rna"]
