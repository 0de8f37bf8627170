"""What compiling for NVIDIA GPUs takes beside the kernels: the toolkit, the compiler, schedules."""
