"""The annotation of the user's cells, looked up when a query asks for it."""

import weakref
from collections.abc import Callable

import pandas as pd
from anndata import AnnData
from mudata import MuData

from totalvi.data.cells import joined_obs, names_of


class Annotation:
    """The ``obs`` of the object that counts came from, with columns added to it later.

    The object is not kept alive, as its counts would be in memory twice: when it is gone, the
    annotation is what it was when the counts were described.

    Parameters
    ----------
    data
        The user's object.
    obs
        Its annotation now.
    rna_modality, protein_modality
        Of a MuData.
    """

    def __init__(
        self,
        data: MuData | AnnData,
        obs: pd.DataFrame,
        rna_modality: str,
        protein_modality: str,
    ) -> None:
        self._data: Callable[[], MuData | AnnData | None] = weakref.ref(data)
        self._obs = obs
        self._modalities = (rna_modality, protein_modality)

    def obs(self) -> pd.DataFrame:
        """Return the annotation of the cells, in their order."""
        data = self._data()
        if data is None:
            return self._obs
        if isinstance(data, MuData):
            rna, protein = (data.mod.get(name) for name in self._modalities)
            if rna is None or protein is None or rna.n_obs != len(self._obs):
                return self._obs
            obs = joined_obs(data, rna, protein)
        else:
            obs = pd.DataFrame(data.obs)
            obs = obs.set_axis(names_of(obs.index), axis=0)
        same_cells = obs.index.equals(self._obs.index)
        return obs if same_cells else self._obs  # the object was cut or sorted in the meantime

    def __getstate__(self) -> pd.DataFrame:
        return self.obs()

    def __setstate__(self, obs: pd.DataFrame) -> None:
        self._obs, self._data = obs, _gone  # a weak reference cannot be pickled


def _gone() -> None:
    """Stand in for the reference to an object that is no more."""
