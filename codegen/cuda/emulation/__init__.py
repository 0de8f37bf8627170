"""A CUDA device that is none: kernels compiled for the host, and a driver that runs them there.

The CUDA C that TVM emits for a kernel is taken as it is. A header gives C++ the words of CUDA, each
PTX instruction becomes a C++ function written after the PTX ISA, and every GPU thread becomes a
fiber. It finds out whether kernels compute what they should; it says nothing about how fast.
"""
