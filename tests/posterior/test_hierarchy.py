"""The text of a hierarchy: what it may say, and what is answered where it cannot be read."""

from pathlib import Path

import pytest

import totalvi
from totalvi.posterior.gates.hierarchy import (
    All,
    Any,
    Else,
    HierarchyError,
    Marker,
    Not,
    parse_hierarchy,
    read_hierarchy,
    shipped_hierarchies,
)


def gate(text: str) -> object:
    """The gate of a hierarchy of one population."""
    (population,) = parse_hierarchy(f"A: {text}").populations
    return population.gate


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CD3+", Marker("CD3", "+")),
        ("CD3-", Marker("CD3", "low")),
        ("CD3low", Marker("CD3", "low")),
        ("CD14mid", Marker("CD14", "mid")),
        ("CD25high?", Marker("CD25", "high", optional=True)),
        ("HLA-DR+", Marker("HLA-DR", "+")),
        ("PD-1-", Marker("PD-1", "low")),
        ('"TCR Vd2"+', Marker("TCR Vd2", "+")),
        ("gene:MS4A1+", Marker("gene:MS4A1", "+")),
        ("I-A/I-E+", Marker("I-A/I-E", "+")),
        ("A+ B-", All((Marker("A", "+"), Marker("B", "low")))),
        ("A+ or B+ C+", Any((Marker("A", "+"), All((Marker("B", "+"), Marker("C", "+")))))),
        ("A+ else B+ C+", All((Else((Marker("A", "+"), Marker("B", "+"))), Marker("C", "+")))),
        ("not (A+ or B+)", Not(Any((Marker("A", "+"), Marker("B", "+"))))),
    ],
)
def test_gates(text: str, expected: object) -> None:
    assert gate(text) == expected


def test_a_path_names_or_makes_the_populations_on_it() -> None:
    hierarchy = parse_hierarchy("""
        # blood
        T: CD3+ CD19-      # T cells
        CD4 T: T > CD4+ CD8-
        CD4 T > CD45RA+ > CD27+
        naive 8: T > CD8+ > CD45RA+ CD27+
        """)
    paths = [hierarchy.path(population.name) for population in hierarchy.populations]
    assert paths == [
        ("T",),
        ("T", "CD4 T"),
        ("T", "CD4 T", "CD45RA+"),
        ("T", "CD4 T", "CD45RA+", "CD27+"),
        ("T", "CD8+"),
        ("T", "CD8+", "naive 8"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("T: CD3", r"Line 1 of 'hierarchy', 'T: CD3': 'CD3' has no level; .*CD3\+"),
        ("T: CD3+\nB: CD19 +", "Line 2 .*'CD19' has no level"),
        ("T: (CD3+", r'a "\(" is not closed; add "\)"'),
        ("T: CD3+)", r'there is a "\)" without "\("'),
        ("T: CD3+ or", 'a marker is missing after "or"'),
        ("T: CD3+ > ", "a gate is empty; write markers"),
        ("T:", "a gate is empty"),
        (": CD3+", "no name before the colon"),
        ('T: "CD3+', "is not closed; quote a whole name"),
        (
            "T cell: CD3+\nT cells > CD4+",
            "no population 'T cells' was named above; did you mean 'T cell'",
        ),
        ("T: CD3+\nT: CD4+", "a population 'T' already"),
        ("T: CD3+ OR CD5+", "'OR' has no level; write 'or' in small letters"),
        ("# nothing", "has no population"),
        ("T: A+\nB: C+\nD: B+ > T > E+", r"population 'T' is below None, not 'B\+'"),
    ],
)
def test_errors_name_the_line_and_the_fix(text: str, said: str) -> None:
    with pytest.raises(HierarchyError, match=said):
        parse_hierarchy(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"\xef\xbb\xbfT: CD3+\r\nB: CD19+\r\n")
    hierarchy = totalvi.read_hierarchy(path)
    assert (hierarchy.name, len(hierarchy.populations)) == ("mine", 2)
    with pytest.raises(HierarchyError, match=r"no hierarchy 'blod'; did you mean \"blood\""):
        read_hierarchy("blod")
    path.write_bytes(b"T: CD3+\xff")
    with pytest.raises(HierarchyError, match="cannot be read as text"):
        read_hierarchy(path)


@pytest.mark.parametrize("name", shipped_hierarchies())
def test_shipped_hierarchies_are_read_and_name_no_antigen_twice(name: str) -> None:
    hierarchy = read_hierarchy(name)
    from totalvi.data.panels.antibody_names import identify

    names = {m.name for p in hierarchy.populations for m in p.markers() if m.gene is None}
    assert len({identify(name).key for name in names}) == len(names)


@pytest.mark.parametrize("marker", ["IgG1+", '"Mouse IgG2a isotype control"-', "isotype_0low?"])
def test_an_isotype_control_tells_no_population(marker: str) -> None:
    with pytest.raises(HierarchyError, match="named like an isotype control, which binds") as error:
        parse_hierarchy(f"B: CD19+ {marker}")
    advice = str(error.value).partition("antibody against it ")[2].removesuffix(".")
    assert bool(advice) == (marker == "IgG1+")
    if advice:
        assert parse_hierarchy(f"B: CD19+ {advice}+").populations


def test_antigens_and_genes_named_like_isotypes_are_markers() -> None:
    hierarchy = parse_hierarchy("B: CD19+ IgD+ IgM- anti-IgG1+ gene:IGHG1+")
    assert [m.name for m in hierarchy.populations[0].markers()][3:] == ["anti-IgG1", "gene:IGHG1"]
