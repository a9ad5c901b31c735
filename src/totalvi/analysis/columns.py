"""Names of columns that a run writes, for readers that load nothing else of it."""

CLUSTER_COLUMN = "leiden_totalvi"
