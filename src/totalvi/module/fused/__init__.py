"""The compiled loops of `totalvi.module.kernels` as differentiable operations on CPU tensors.

Products as wide as the genes may be taken in bfloat16 with sums in float32, which processors with
matrix units do many times faster; ``bfloat16`` says which.
"""
