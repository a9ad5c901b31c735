"""Model files: the folder of this package, and the formats of other implementations."""
