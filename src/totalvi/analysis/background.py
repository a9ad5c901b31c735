"""What is known of the proteins' background besides the model: tables and words of a run."""

import pandas as pd
from mudata import MuData

from totalvi.data.background.ambient import AMBIENT
from totalvi.data.finding import listed
from totalvi.model import Model


def background_tables(model: Model, mdata: MuData) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Return tables of the empty droplets and isotype controls, where there are any, and warnings.

    ``ambient``: what the droplets hold; ``isotype_controls`` and ``background``: how the estimated
    background agrees with the controls, by control and by protein.
    """
    tables = {}
    if AMBIENT in mdata.uns:
        tables["ambient"] = mdata.uns[AMBIENT].set_index("protein")
    if not model.schema.control_names:
        return tables, []
    check = model.check_isotype_controls()
    tables |= {"isotype_controls": check.controls, "background": check.proteins}
    high = check.proteins.index[check.proteins["warning"] != ""]
    if not len(high):
        return tables, []
    return tables, [
        f"{len(high)} of {len(check.proteins)} proteins have a background far above the isotype "
        f"controls, {listed(high)}: it may be signal that most cells have, see tables/background.csv"
    ]
