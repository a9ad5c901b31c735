"""Draw formulas in TeX as SVG while the site is built, so that browsers need nothing for them."""

from html import escape
from typing import Any

import ziamath


def math_fence(source: str, *_: Any, **__: Any) -> str:
    """Return a block of code in the language ``math`` as HTML; each paragraph is a line of formulas."""
    formulas = [" ".join(part.split()) for part in source.split("\n\n") if part.strip()]
    return "\n".join(
        f'<div class="math" role="img" aria-label="{escape(formula, quote=True)}">'
        f"{ziamath.Latex(formula, size=19, color='currentColor').svg()}</div>"
        for formula in formulas
    )
