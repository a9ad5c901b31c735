"""Common names for the antibodies of several panels; two of a panel never become one."""

import warnings
from collections.abc import Mapping, Sequence

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from totalvi.data.panels.antibodies import harmonise_antibodies

NAMES = """CD3|CD3_TotalSeqB|CD3 (UCHT1)|CD3 (SK7)|CD3 (ucht1)|CD3E|CD3-2|CD279|PD-1|PD1 (CD279)
CD279 (EH12)|CD45RA|CD8|CD8a|CD8b|CD4|CD4 (SK3)|anti-mouse CD4|anti-human CD4|CD4 (mouse)|CD4 (human)
IgG1|Mouse IgG1|CD274|B7-H1 (PD-L1)|weird""".replace("\n", "|").split("|")
PANELS = st.dictionaries(
    st.sampled_from(["A", "B", "C"]), st.lists(st.sampled_from(NAMES), unique=True), min_size=1
)


def named(names: Mapping[str, Sequence[str]], antibody_names=None) -> dict[str, dict[str, str]]:
    table = harmonise_antibodies(names, antibody_names)
    return {
        data_set: dict(zip(rows["original"], rows["harmonised"], strict=True))
        for data_set, rows in table.groupby("data_set", sort=False)
    }


@pytest.fixture
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@settings(max_examples=300, deadline=None)
@given(PANELS, st.sampled_from(NAMES))
def test_antibodies_of_a_panel_stay_distinct(panels, renamed):
    present = {name for names in panels.values() for name in names}
    wanted = {renamed: "CD279"} if renamed in present and "CD279" not in present else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = harmonise_antibodies(panels, wanted)
    assert not table.duplicated(["data_set", "harmonised"]).any()
    rows = [(data_set, name) for data_set, names in panels.items() for name in names]
    assert list(zip(table["data_set"], table["original"], strict=True)) == rows
    assert (table["harmonised"][table["original"].isin(list(wanted))] == "CD279").all()
    assert (table["why"] != "").all()


@settings(max_examples=100, deadline=None)
@given(PANELS)
def test_equal_panels_are_joined_antibody_by_antibody(panels):
    panel = next(iter(panels.values()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = named({"A": panel, "B": panel})
    assert names.get("A") == names.get("B")


def test_two_of_a_panel_stay_two_with_a_warning():
    panels = {
        "ecc": ["PD-1 (CD279)", "PD1 (CD279)", "CD3"],
        "ten": ["PD-1_TotalSeqB", "CD3_TotalSeqB"],
    }
    with pytest.warns(
        UserWarning, match=r'"PD-1 \(CD279\)", "PD1 \(CD279\)" are all against CD279'
    ):
        names = named(panels)
    assert names["ecc"] == {
        "PD-1 (CD279)": "PD-1 (CD279)",
        "PD1 (CD279)": "PD1 (CD279)",
        "CD3": "CD3",
    }
    assert names["ten"] == {"PD-1_TotalSeqB": "CD279", "CD3_TotalSeqB": "CD3"}


def test_the_fix_in_the_warning_works(no_warning):
    panels = {"ecc": ["PD-1 (CD279)", "PD1 (CD279)"], "ten": ["PD-1_TotalSeqB"]}
    names = named(panels, {"ecc": {"PD-1 (CD279)": "CD279"}})
    assert names["ecc"] == {"PD-1 (CD279)": "CD279", "PD1 (CD279)": "PD1 (CD279)"}
    assert names["ten"]["PD-1_TotalSeqB"] == "CD279"


def test_two_clones_are_matched_by_clone():
    panels = {"A": ["CD3_UCHT1_TotalSeqA", "CD3_SK7_TotalSeqA"], "B": ["CD3 (ucht1)"], "C": ["CD3"]}
    with pytest.warns(UserWarning, match=r'named "CD3 \(UCHT1\)", "CD3 \(SK7\)"'):
        names = named(panels)
    assert list(names["A"].values()) == ["CD3 (UCHT1)", "CD3 (SK7)"]
    assert names["B"] == {"CD3 (ucht1)": "CD3 (UCHT1)"}
    assert names["C"] == {"CD3": "CD3"}


def test_other_clones_of_one_target_are_joined_across_panels(no_warning):
    names = named({"A": ["CD3 (UCHT1)"], "B": ["CD3 (OKT3)"]})
    assert set(names["A"].values()) == set(names["B"].values()) == {"CD3"}


def test_antibodies_against_other_species_are_not_joined(no_warning):
    names = named({"A": ["anti-human CD4", "anti-mouse CD4"], "B": ["anti-mouse CD4", "CD8"]})
    assert names["A"] == {"anti-human CD4": "CD4 (human)", "anti-mouse CD4": "CD4 (mouse)"}
    assert names["B"] == {"anti-mouse CD4": "CD4 (mouse)", "CD8": "CD8a"}
    assert (
        named({"A": ["anti-mouse CD4"], "B": ["mouse/human CD4"]})["A"]["anti-mouse CD4"] == "CD4"
    )


def test_names_for_all_data_sets_or_one(no_warning):
    panels = {"A": ["weird", "CD3"], "B": ["weird"]}
    assert named(panels, {"weird": "CD19"})["B"] == {"weird": "CD19"}
    assert named(panels, {"B": {"weird": "CD19"}}) == {
        "A": {"weird": "weird", "CD3": "CD3"},
        "B": {"weird": "CD19"},
    }


@pytest.mark.parametrize(
    ("antibody_names", "message"),
    [
        ({"wierd": "CD19"}, 'antibody_names holds "wierd"; did you mean "weird"'),
        ({"C": {"weird": "CD19"}}, 'antibody_names holds the data set "C"'),
        ({"B": {"CD3": "CD19"}}, 'antibody_names holds "CD3" of data set "B"'),
        ({"weird": "x", "CD3": "x"}, 'gives the name "x" to "weird", "CD3" of data set "A"'),
        ({"A": {"weird": "CD3"}}, 'gives the name "CD3" to another antibody of data set "A"'),
    ],
)
def test_names_that_cannot_be_given(antibody_names, message):
    with pytest.raises(ValueError, match=message):
        harmonise_antibodies({"A": ["weird", "CD3"], "B": ["weird"]}, antibody_names)


def test_repeated_originals_are_refused():
    with pytest.raises(ValueError, match='data set "A" has several antibodies named "CD3"'):
        harmonise_antibodies({"A": ["CD3", "CD3"]})


def test_the_table_says_why():
    table = harmonise_antibodies(
        {"A": ["CD4", "PD-1_TotalSeqB", "CD8 (SK1)", "IgG1", "HLA.DR", "CD9"]},
        {"CD9": "tetraspanin"},
    )
    assert table["why"].tolist() == [
        "as written",
        "PD-1 is CD279; tags left out",
        "CD8 is CD8a; clone SK1",
        "isotype control",
        "read as HLA-DR",
        "given in antibody_names",
    ]
    assert isinstance(table, pd.DataFrame)
