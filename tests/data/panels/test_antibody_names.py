"""What antibody names say, by a table of names from public data and from makers' panels."""

# ruff: noqa: RUF001 - Greek letters are part of the names

from pathlib import Path

import anndata
import pytest

import totalvi
from totalvi.data.panels.antibody_names import ALIASES, identify, spelling_key

# target: ways in which data sets and makers write it
VARIANTS = {
    "CD3": "CD3_TotalSeqB|CD3_TotalSeqC|CD3_TotalC|CD3-TotalSeqA|anti-human CD3 [UCHT1]|CD3E|CD3e"
    "|CD3 epsilon|CD3ε|CD3 (OKT3)|CD3-CTCATTGTAACTCCT|TotalSeq™-C0034 anti-human CD3 Antibody"
    "|Hu.CD3_UCHT1|CD3.UCHT1.CD3E.AHS0231.pAbO|αCD3|CD3-2|CD3 (CD3E)|hCD3_TotalSeqA",
    "CD4": "CD4_TotalSeqB|Hu.CD4_RPA.T4|ADT-CD4|CD4-ADT|prot_CD4|cd4|CD_4|CD4 OKT4|A0072 anti-human CD4"
    "|CD4_A0072|CD4 (SK3)|antihuman CD4",
    "CD8a": "CD8a_TotalSeqB|ADT_CD8a_A0046|CD8 (SK1)|CD8|CD8A|CD8α|CD8 alpha|CD8-RPA-T8"
    "|TotalSeq-A0046 anti-human CD8",
    "CD8b": "CD8b|CD8B|CD8 beta|CD8β",
    "CD11a/CD18": "CD11a/CD18|CD11a/CD18 (LFA-1)|CD11a-CD18|LFA-1",
    "CD11b": "CD11b|HuMs.CD11b|ITGAM|CD11b (Mac-1)|CD11b M1/70",
    "CD11c": "CD11c|CD11-c|ITGAX|integrin αX",
    "CD16": "CD16_TotalSeqB|CD16|FCGR3A|CD16 3G8|FcγRIII|CD16-FCGR3A|CD16 (FcγRIII)",
    "CD25": "CD25|IL2RA|IL-2Rα|CD25 (IL-2R alpha)",
    "CD26": "CD26 (Adenosine)|CD26|DPP4",
    "CD31": "PECAM (CD31)|PECAM-1|CD31",
    "CD45R": "B220 (CD45R)|CD45R/B220|B220",
    "CD45RA": "CD45RA_TotalSeqB|CD45RA-2|CD45 RA|CD45ra|CD45RA-HI100-PTPRC-AHS0009-pAbO",
    "CD45RO": "CD45RO_TotalSeqB|CD45R0|CD45RO (UCHL1)",
    "CD49b": "CD49b|CD49 b|ITGA2|VLA-2",
    "CD56": "CD56_TotalSeqB|CD56(NCAM)|NCAM-1|NCAM|CD56 NCAM16.2|CD56 (QA17A16)",
    "CD62L": "CD62L (L-selectin)|CD62L|CD62-L|SELL|Hu.CD62L",
    "CD66a/c/e": "CD66a/c/e|CD66ace|CD66a/c/e ASL-32",
    "CD107a": "LAMP1|LAMP-1|CD107a",
    "CD117": "C-kit (CD117)|KIT|c-Kit",
    "CD127": "CD127_TotalSeqB|IL7Ralpha|IL7Ralpha (CD127)|IL-7Rα|IL7R|CD127 (A019D5)",
    "CD134": "Ox40 (CD134)|OX-40|TNFRSF4",
    "CD152": "CTLA4|CTLA-4|CD152",
    "CD154": "CD40L|CD40 ligand|CD40LG",
    "CD158b": "CD158b|CD158b (KIR2DL2/L3, NKAT2)|KIR2DL2/L3",
    "CD158e1": "CD158e1|CD158e1 (KIR3DL1, NKB1)|KIR3DL1",
    "CD197": "CCR7|CD197 (CCR7)",
    "CD223": "CD223 (lag3)|LAG-3",
    "CD235a/b": "CD235ab|CD235a/b",
    "CD274": "PD-L1 (CD274)|B7-H1 (PD-L1)|PD-L1|B7-H1|CD274 (29E.2A3)",
    "CD279": "PD-1_TotalSeqB|PD-1 (CD279)|PD1 (CD279)|PD-1|PD-1 EH12.2H7|PDCD1|Hu.CD279_EH12.2H7",
    "CD307c": "CD307c/FcRL3|FCRL3",
    "CD326": "EpCAM (CD326)|Ep-CAM",
    "CD366": "CD366 (tim3)|TIM-3",
    "CD371": "CLEC12A|CD371 (CLEC12A)",
    "CX3CR1": "CX3CR1|CX3CR1_TotalSeqB",
    "FceRIa": "FceRIa|FcεRIα|FCER1A",
    "HLA-A,B,C": "HLA-A,B,C|HLA-A-B-C|HLA.A.B.C|Hu.HLA.ABC|HLA-ABC",
    "HLA-DR": "HLA-DR|HLA.DR|MHCII (HLA-DR)|HLA-DR L243|HLADR",
    "IgD": "IgD|anti-human IgD",
    "IgM": "IgM|anti-human IgM|IgM MHM-88",
    "Podoplanin": "Podoplanin|podoplanin|PDPN",
    "TCR Va7.2": "TCRVa7.2|TCR Vα7.2|Hu.TCR.Va7.2",
    "TCR Vd2": "TCRVd2|TCR Vδ2",
    "TCRab": "TCR a/b|TCRαβ|TCR alpha/beta|Hu.TCR.AB|TCR α/β IP26",
    "TCRgd": "TCR γ/δ|TCRgd|TCR gamma delta",
    "TIGIT": "TIGIT|TIGIT_TotalSeqB|TIGIT (A15153G)",
    "integrin b7": "integrinB7|Integrin β7|HuMs.integrin.b7",
    "IgG1 isotype control": "IgG1|IgG1_control_TotalSeqB",
    "IgG2a isotype control": "IgG2a|IgG2a_control_TotalSeqB",
    "mouse IgG1 isotype control": "Mouse IgG1, κ Isotype Ctrl|Isotype_MOPC.21|isotype_MOPC-21"
    "|MouseIgG1kappaisotype_PROT",
    "rat IgG2b isotype control": "Rat-IgG2b|Isotype-RTK4530|Rat IgG2b",
    "hamster IgG isotype control": "Armenian Hamster IgG Isotype Ctrl|Isotype_HTK888",
}
ABSEQ = {  # these hold the "|" that parts the names above
    "CD3:UCHT1|CD3E|AHS0231|pAbO": ("CD3", "UCHT1"),
    "CD16:3G8|FCGR3A|AHS0053|pAbO": ("CD16", "3G8"),
    "CD279:EH12-1|PDCD1|AHS0014|pAbO": ("CD279", "EH12-1"),
    "CD45RA:HI100|PTPRC|AHS0009|pAbO": ("CD45RA", "HI100"),
    "HLA-DR|CD74|AHS0035|pAbO": ("HLA-DR", ""),
}
CASES = [(name, target) for target, names in VARIANTS.items() for name in names.split("|")]
ALL_NAMES = [name for name, _ in CASES] + list(ABSEQ)

APART = """\
CD8a CD8b|CD45 CD45RA|CD45RA CD45RO|CD45RA CD45RB|CD45 CD45R|CD45.1 CD45.2|CD45 CD45.1|CD1a CD1c
CD1c CD1d|CD3-2 CD32|CD4-1 CD41|CD3E CD3D|CD11a CD11b|CD11b CD11c|CD11a CD11a/CD18|CD49a CD49b
CD49d CD49f|CD66a CD66c|CD66b CD66a/c/e|CD16 CD16b|CD16 CD163|CD16 CD16/CD32|CD32 FCGR2A
CD32a CD32b|CD158 CD158b|CD158a CD158b|CD158b CD158e1|CD62L CD62P|HLA-A,B,C HLA-A2
HLA-DR HLA-DR,DP,DQ|HLA-DR HLA-E|TCRab TCRgd|TCRb TCRab|TCR TCRab|TCRVa7.2 TCRVd2|IgG1 IgG2a
IgG2a IgG2b|Mouse_IgG1 Rat_IgG1|IgG1 Mouse_IgG1|IgM IgD|IgM IgM_isotype|IgG_Fc IgG1|CD40 CD40L
CD27 CD27L|CD200 CD200R|CD79a CD79b|CD85j CD85k|NCAM-1 NCAM-2|Mac-1 Mac-2|PD-1 PD-L1|PD-L1 PD-L2
TIM-1 TIM-3|Siglec-7 Siglec-8|CD107a CD107b|CD120a CD120b|CD28 CD278|CD2 CD20|CD42a CD42b
CD15 CD15s|CD99 CD99R|IL2RA IL2RB|CD161 CD16"""


@pytest.mark.parametrize(("name", "target"), CASES)
def test_target(name: str, target: str) -> None:
    assert identify(name).target == target


def test_there_are_enough_variants() -> None:
    assert len(ALL_NAMES) >= 60
    assert len(set(ALL_NAMES)) == len(ALL_NAMES)


@pytest.mark.parametrize("name", ABSEQ)
def test_abseq(name: str) -> None:
    antibody = identify(name)
    assert (antibody.target, antibody.clone) == ABSEQ[name]


@pytest.mark.parametrize("pair", APART.split("\n"))
def test_kept_apart(pair: str) -> None:
    for names in pair.split("|"):
        a, b = names.split(" ")
        a, b = (name.replace("_", " ") if "Ig" in name else name for name in (a, b))
        assert identify(a).key != identify(b).key, (a, b)
        assert identify(a).target != identify(b).target, (a, b)


@pytest.mark.parametrize(
    ("name", "clone"),
    [
        ("CD8 (SK1)", "SK1"),
        ("anti-human CD3 [UCHT1]", "UCHT1"),
        ("CD34 (581)", "581"),
        ("CD28 (clone CD28.2)", "CD28.2"),
        ("CD274 29E.2A3", "29E.2A3"),
        ("CD278_C398.4A_TotalSeqA", "C398.4A"),
        ("Notch3 (MHN3-21)", "MHN3-21"),
        ("CD62L (L-selectin)", ""),
        ("CD26 (Adenosine)", ""),
        ("CD4", ""),
    ],
)
def test_clone(name: str, clone: str) -> None:
    assert identify(name).clone == clone


@pytest.mark.parametrize(
    ("name", "species"),
    [
        ("anti-human CD4", "human"),
        ("Hu.CD4", "human"),
        ("anti-mouse/human CD44", "human/mouse"),
        ("HuMsRt.CD278", "human/mouse/rat"),
        ("mCD45", "mouse"),
        ("CD45 (mouse)", "mouse"),
        ("MS4A1", ""),
        ("CD4", ""),
    ],
)
def test_species(name: str, species: str) -> None:
    assert identify(name).species == species


@pytest.mark.parametrize(
    "name",
    """CD3 (CD19)|CD19/CD20|CD3 complex|TIM-3 (PD-1)|CD4 CD8|Notch 1|CD3 TIGIT|PD-1 (CD274)
CD274 (PD-1)|CD45 (CD45RA)|CD8 (CD8b)""".replace("\n", "|").split("|"),
)
def test_what_is_unclear_is_left_whole(name: str) -> None:
    assert identify(name)[:3] == (name, spelling_key(name), "")


@pytest.mark.parametrize("name", [*ALL_NAMES, *APART.replace("\n", " ").replace("|", " ").split()])
def test_a_target_is_its_own_target(name: str) -> None:
    target = identify(name)
    again = identify(target.target)
    assert (again.target, again.key) == (target.target, target.key)


def test_every_alias_has_one_target() -> None:
    seen: dict[str, str] = {}
    for target, aliases in ALIASES.items():
        assert identify(target).target == target
        for alias in aliases:
            assert identify(alias).target == target, alias
            assert seen.setdefault(spelling_key(alias), target) == target, alias


@pytest.mark.parametrize("name", ["TotalSeq-A", "A0046", " ", "()", "ADT"])
def test_a_name_of_tags_alone_is_left_as_it_is(name: str) -> None:
    assert identify(name).target == name


def test_names_of_public_data(shared: Path) -> None:
    ten = totalvi.read(shared / "data" / "10x_pbmc_10k_protein_v3_subset")["prot"].var_names
    targets = {identify(name).target for name in ten}
    assert targets == {
        *("CD3", "CD4", "CD8a", "CD14", "CD15", "CD16", "CD19", "CD25", "CD45RA", "CD45RO"),
        *("CD56", "CD127", "CD279", "TIGIT"),
        *(f"{name} isotype control" for name in ("IgG1", "IgG2a", "IgG2b")),
    }
    marrow = totalvi.read(shared / "data" / "bmmc_134proteins.h5mu")["prot"].var_names
    renamed = {name: identify(name).target for name in marrow if identify(name).target != name}
    assert renamed == {
        "CD8": "CD8a",
        "HLA-A-B-C": "HLA-A,B,C",
        "TCRVa7.2": "TCR Va7.2",
        "TCRVd2": "TCR Vd2",
        "integrinB7": "integrin b7",
    }
    assert len({identify(name).key for name in marrow}) == 134
    eccite = anndata.read_h5ad(shared / "data" / "eccite_pbmc_49proteins.h5ad")
    targets = [identify(name).target for name in eccite.obsm["protein_counts"].columns]
    assert {target for target in targets if targets.count(target) > 1} == {"CD279", "CD274"}
    assert len(set(targets)) == 47


def test_barcodes_of_eight_bases_are_no_part_of_a_name() -> None:
    assert identify("CD335_GTTTGTGG").key == identify("CD335").key
    assert identify("CD4_TGTTCCCGCTCAACT").key == identify("CD4").key
    assert identify("CD335_GTTTGTG").key != identify("CD335").key
