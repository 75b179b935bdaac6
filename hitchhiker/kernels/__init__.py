"""How relaxed counts are drawn fast: each kernel returns the count and its derivative, nothing else is kept.

Laws call the operators of :mod:`hitchhiker.kernels.operators`; callers never choose a kernel.
"""
