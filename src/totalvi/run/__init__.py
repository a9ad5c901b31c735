"""From a count file to a folder of results: the commands that fit, map and impute."""
