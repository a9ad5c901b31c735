"""Install the distributions of a folder into an empty environment, and use them there.

The wheel is installed alone, to see that models can be fitted without the packages that only reports,
clusters and the explorer need; then with everything, for `totalvi demo`; then the source distribution
takes its place. `make test-install` runs it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
CORE = """
import sys, totalvi
mdata = totalvi.simulate(n_cells=100, n_genes=30, n_proteins=5, seed=1)
model = totalvi.Model(mdata, n_hidden=16, n_latent=4)
model.train(max_epochs=1)
assert model.get_latent_representation().shape == (100, 4)
loaded = {"bokeh", "matplotlib", "scanpy"} & set(sys.modules)
assert not loaded, loaded
"""


def main(folder: Path) -> None:
    """Try the wheel and the source distribution."""
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with tempfile.TemporaryDirectory() as place:
        _run(Path(sys.executable), "-m", "venv", place)
        programs = Path(place) / "bin"
        python, totalvi = programs / "python", programs / "totalvi"
        pip = ("-m", "pip", "install", "--quiet", "--constraint", str(CONSTRAINTS))
        _run(python, *pip, str(wheel))
        _run(python, "-c", CORE)
        _run(totalvi, "--version")
        refused = subprocess.run([totalvi, "demo"], capture_output=True, text=True)
        if refused.returncode != 2 or "totalvi[" not in refused.stderr:
            raise SystemExit(f"totalvi demo without its packages said: {refused.stderr}")
        _run(python, *pip, f"{wheel}[all]")
        _run(totalvi, "demo", "--output", str(Path(place) / "demo"))
        _run(python, *pip, "--force-reinstall", "--no-deps", str(source))
        _run(python, "-c", CORE)
    print(f"{wheel.name} and {source.name} install into an empty environment and work")


def _run(program: Path, *arguments: str) -> None:
    subprocess.run([program, *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
