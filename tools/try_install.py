"""Install each distribution of a folder into an empty environment, and use it there.

The wheel is installed alone, to see that models can be fitted without the packages that only reports,
clusters and the explorer need; then with everything, for `totalvi demo`. `make test-install` runs it.
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
        core = _environment(Path(place) / "core", str(wheel))
        _run(core / "python", "-c", CORE)
        _run(core / "totalvi", "--version")
        refused = subprocess.run([core / "totalvi", "demo"], capture_output=True, text=True)
        if refused.returncode != 2 or "totalvi[" not in refused.stderr:
            raise SystemExit(f"totalvi demo without its packages said: {refused.stderr}")
        _run(core / "python", "-m", "pip", *_pip(f"{wheel}[all]"))
        _run(core / "totalvi", "demo", "--output", str(Path(place) / "demo"))
        other = _environment(Path(place) / "source", str(source))
        _run(other / "python", "-c", CORE)
    print(f"{wheel.name} and {source.name} install and work in empty environments")


def _environment(folder: Path, distribution: str) -> Path:
    """Make an environment with a distribution, and return the folder of its programs."""
    _run(Path(sys.executable), "-m", "venv", str(folder))
    _run(folder / "bin" / "python", "-m", "pip", *_pip(distribution))
    return folder / "bin"


def _pip(distribution: str) -> list[str]:
    return ["install", "--quiet", "--constraint", str(CONSTRAINTS), distribution]


def _run(program: Path, *arguments: str) -> None:
    subprocess.run([program, *arguments], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
