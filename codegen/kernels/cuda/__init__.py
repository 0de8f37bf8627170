"""Kernels for NVIDIA GPUs, in the same arithmetic and on the same packings as those for processors.

Activations between kernels are float32, as in the reference. TVM makes CUDA C of each kernel, which
nvcc compiles.
"""
