"""New cells on a fitted model: alignment, surgery, label transfer, and what is unlike the reference."""
