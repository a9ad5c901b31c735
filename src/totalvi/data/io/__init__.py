"""Files and stores of counts: reading and writing."""
