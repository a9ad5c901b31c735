"""Colours of all figures: told apart with normal and colour-blind vision."""

INK = "#222222"
QUIET = "#8A8F98"
PALE = "#D5D8DC"
BACKGROUND = "#B4B9C0"
FOREGROUND = "#0072B2"
WARNING = "#C43C00"

# Six colours of Okabe and Ito, then each the one farthest (in CIELAB, the least over normal vision
# and simulated deuteranopia and protanopia) from all before it.
# fmt: off
PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#0069FF", "#692D0F",
    "#004B4B", "#C3D287", "#4B0FA5", "#6996FF", "#E1B4B4", "#781E78", "#B4693C", "#C3A54B",
    "#0FE1F0", "#0F694B", "#3C5AC3", "#FF4B78", "#785A78", "#963C00", "#5A2D96", "#C3D24B",
    "#3CB4C3", "#3C5A2D", "#E1C3A5", "#5A6996", "#4B4BD2", "#B4002D", "#A569D2", "#8787C3",
    "#D29669", "#2D9600", "#7878FF", "#87E169", "#D28796", "#693C69", "#B44B5A", "#4B964B",
)
# fmt: on


def category_colors(n_categories: int) -> list[str]:
    """Return one colour for each category; after 40 categories the colours start again."""
    return [PALETTE[i % len(PALETTE)] for i in range(n_categories)]
