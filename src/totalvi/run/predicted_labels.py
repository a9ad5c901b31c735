"""Predict the labels of a run's cells that have none, where some are known."""

import numpy as np
import pandas as pd

from totalvi.mapping.label_prediction import UNLIKE_ALL, LabelPrediction
from totalvi.run.after_fit import Work
from totalvi.run.folder import RESULTS_OF_LABELS
from totalvi.run.table_files import write_tables

PREDICTED_COLUMN, PROBABILITY, UNLIKE = RESULTS_OF_LABELS
_MOST_FEATURES = 20  # of a label in the table


def predict_labels(work: Work) -> None:
    """Add the predicted labels to the results file, and write the tables.

    ``label_probabilities`` has a row for each cell, ``labels`` one for each label, and
    ``deciding_features`` the features that speak most for each label.
    """
    found = work.model.predict(progress=False)
    columns = {
        PREDICTED_COLUMN: found.labels.array,
        PROBABILITY: found.probabilities.max(axis=1).to_numpy(np.float32),
        UNLIKE: found.unlike["probability"].to_numpy(np.float32),
    }
    for name, values in columns.items():
        work.file.add_obs(name, values)
    unlike = found.unlike[["p_value", "unlikeness"]].assign(known=found.known)
    cells = pd.DataFrame(columns, index=found.labels.index).join(unlike)
    cells = cells.join(found.probabilities.add_prefix("probability_"))
    path = work.folder / "tables" / "label_probabilities.csv.gz"
    path.parent.mkdir(exist_ok=True)
    cells.rename_axis("cell").to_csv(path, float_format="%.6g")
    features = work.model.get_deciding_features()
    features = features.groupby("label", sort=False).head(_MOST_FEATURES).set_index("label")
    obs = work.data.obs[work.options.keys.labels_key]
    tables = {"labels": label_table(found, obs), "deciding_features": features}
    write_tables(tables, work.folder / "tables")


def label_table(found: LabelPrediction, given: pd.Series) -> pd.DataFrame:
    """Return how many cells each label was known of, and how many it is predicted for.

    Parameters
    ----------
    found
        What was predicted.
    given
        Label of each cell, where it is known.

    Returns
    -------
    A row for each label and for "unlike all": cells ``known`` to have it, of which ``agreeing`` are
    predicted to; ``predicted`` cells of those without a label, and their mean ``probability`` of it.
    """
    rows = {}
    texts = given.astype(str).to_numpy()
    for name in [*found.probabilities, UNLIKE_ALL]:
        of_known = found.known & (texts == name)
        is_answer = (found.labels == name).to_numpy()
        of_others = is_answer & ~found.known
        chance = found.unlike["probability"] if name == UNLIKE_ALL else found.probabilities[name]
        rows[name] = {
            "known": int(of_known.sum()),
            "agreeing": int((of_known & is_answer).sum()),
            "predicted": int(of_others.sum()),
            "probability": float(chance[of_others].mean()),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")
