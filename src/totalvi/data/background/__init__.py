"""The background of proteins: empty droplets, isotype controls, and the prior that they inform."""
