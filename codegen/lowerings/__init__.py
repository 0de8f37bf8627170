"""How the operators of a legal graph become kernels and tensor expressions, one subject a file.

A lowering takes the function being built and an FX node, and returns what the node stands for: a
Value, a size, or a tuple of either. `codegen.aten` and `codegen.operators` list them all.
"""
