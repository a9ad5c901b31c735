"""From a count file to a folder of results: the steps of `totalvi run`."""
