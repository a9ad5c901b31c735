"""Print the lowest version that pyproject.toml allows of each dependency, as constraints for pip."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest_versions() -> list[str]:
    """Return ``"name==version"`` for each dependency, those of extras and development included."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(text for extra in extras for text in extra)]
    own = f"{project['name']}["  # an extra that consists of others
    return sorted({_pinned(text) for text in requirements if not text.startswith(own)})


def _pinned(requirement: str) -> str:
    found = re.match(r"([\w-]+)>=([\w.]+)", requirement)
    if found is None:
        raise SystemExit(
            f"{requirement!r} in pyproject.toml has no lower bound: write name>=version"
        )
    return f"{found[1]}=={found[2]}"


if __name__ == "__main__":
    print("\n".join(lowest_versions()))
