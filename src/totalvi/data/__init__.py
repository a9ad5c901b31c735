"""CITE-seq counts: reading, finding, checking, describing, simulating and fetching them."""
