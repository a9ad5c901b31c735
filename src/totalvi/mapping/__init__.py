"""Map new cells on a fitted model: surgery of its network, label transfer, novelty, reliability."""
