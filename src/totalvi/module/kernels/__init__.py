"""Compiled loops for the CPU: what torch would do in many passes over memory, in one.

Each is a fast path of formulas that `totalvi.module` also has in plain torch, and is tested against
them by value and gradient. `TOTALVI(fused=False)` does without them.
"""
