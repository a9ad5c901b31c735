"""Measure how denoising changes the correlation of proteins with their genes.

    python benchmarks/rna_protein.py --data pbmc10k.h5mu --seed 0

The table shows the Spearman correlation of each matched gene and protein over cells: of counts (RNA
divided by the cell's total), and of samples around the denoised means. The control is the same
samples, with the genes of another cell beside each cell's proteins. Results go to
benchmarks/results/rna_protein.json and rna_protein.md, the figure to docs/images/rna_protein.png.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

import totalvi
from totalvi.figures.png_style import new_figure, save
from totalvi.figures.style import BACKGROUND, FOREGROUND, INK, WARNING

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[1] / "shared" / "data" / "pbmc10k.h5mu"


def measure(model: totalvi.Model, n_samples: int) -> pd.DataFrame:
    table = model.get_gene_protein_pairs(n_samples=n_samples)
    control = model.get_feature_correlation_matrix(
        n_samples=n_samples,
        gene_list=list(table["gene"].unique()),
        protein_list=list(table["protein"].unique()),
        permute_genes=True,
    ).loc["rna", "protein"]
    table["control"] = [
        control.at[gene, protein]
        for gene, protein in zip(table["gene"], table["protein"], strict=True)
    ]
    return table.sort_values("raw", ignore_index=True)


def draw(table: pd.DataFrame, path: Path) -> None:
    figure = new_figure(6.4, 0.8 + 0.3 * len(table), layout="constrained")
    axes = figure.add_subplot()
    rows = range(len(table))
    axes.hlines(rows, table["raw"], table["denoised"], color=BACKGROUND, linewidth=1.5, zorder=1)
    for column, color, marker in (
        ("raw", INK, "o"), ("denoised", FOREGROUND, "o"), ("control", WARNING, "x"),
    ):  # fmt: skip
        label = "denoised, genes of another cell" if column == "control" else column
        axes.scatter(table[column], rows, color=color, marker=marker, label=label, zorder=2)
    axes.axvline(0, color=BACKGROUND, linewidth=0.8, zorder=0)
    proteins = table["protein"].str.removesuffix("_TotalSeqB")
    axes.set_yticks(rows, [f"{p}, {g}" for p, g in zip(proteins, table["gene"], strict=True)])
    axes.set_xlabel("Spearman correlation over cells")
    figure.legend(frameon=False, loc="outside upper center", ncols=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, help="a saved model of the data, in place of a fit")
    parser.add_argument("--samples", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if not arguments.data.exists():
        parser.error(f"{arguments.data} does not exist; give a CITE-seq file with --data")
    mdata = totalvi.read(arguments.data)
    if arguments.model is None:
        model = totalvi.Model(mdata, seed=arguments.seed)
        model.train()
    else:
        model = totalvi.Model.load(arguments.model, mdata)
    table = measure(model, arguments.samples)
    means = table[["raw", "denoised", "control"]].mean()
    content = {
        "totalvi": totalvi.__version__,
        "data": arguments.data.stem,
        "seed": model.seed,
        "epochs": len(model.history),
        "n_samples": arguments.samples,
        "mean": means.round(4).to_dict(),
        "pairs": table.round(4).to_dict(orient="records"),
    }
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / "rna_protein.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = ["| protein | gene | raw | denoised | control |", "|---|---|---|---|---|"]
    lines += [
        f"| {row.protein} | {row.gene} | {row.raw:.3f} | {row.denoised:.3f} | {row.control:.3f} |"
        for row in table.itertuples()
    ]
    lines.append(
        f"| mean | | {means['raw']:.3f} | {means['denoised']:.3f} | {means['control']:.3f} |"
    )
    (folder / "rna_protein.md").write_text("\n".join(lines) + "\n")
    draw(table, HERE.parent / "docs" / "images" / "rna_protein.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
