"""Fast forms of the operations in `ops`: compiled loops for the CPU, with their gradients."""
