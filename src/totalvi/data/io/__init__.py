"""Read and write files and stores of counts."""
