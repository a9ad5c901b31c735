"""Commands that fit, map and impute, from a count file to a folder of results."""
