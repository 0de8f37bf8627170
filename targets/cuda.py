"""NVIDIA GPUs, driven by an x86-64 processor."""

from __future__ import annotations

from qcompiler.core.target import Gpu, Speeds, Target


def _target(name: str, summary: str, gpu: Gpu, l2_bytes: int, speeds: Speeds) -> Target:
    return Target(
        name=name,
        summary=summary,
        tvm={
            "kind": "cuda",
            "arch": f"sm_{gpu.level}",
            "max_num_threads": gpu.threads,
            "max_threads_per_block": gpu.threads,
            "max_shared_memory_per_block": gpu.shared_bytes,
            "thread_warp_size": 32,
        },
        arch="x86_64",
        # The processor only starts kernels: its code is for every x86-64.
        features=frozenset(),
        # A warp's register: 32 numbers of 32 bits.
        vector_bits=1024,
        vector_registers=255,
        dot="mma",
        l2_bytes=l2_bytes,
        tile_vectors=1,
        schemes=("w4a8*", "w8a8*", "w[48]", "w[48]g*", "w[48]z"),
        gpu=gpu,
        speeds=speeds,
    )


CUDA_SM80 = _target(
    "cuda-sm80",
    "NVIDIA GPUs since Ampere (A100, RTX 30): int8 and float16 tensor cores",
    Gpu(level=80),
    l2_bytes=40 << 20,  # the A100's
    # The A100's, from its data sheet.
    speeds=Speeds(bytes=1555e9, int8_ops=624e12, float_ops=19.5e12),
)

CUDA_SM90 = _target(
    "cuda-sm90",
    "NVIDIA GPUs since Hopper (H100, H200): int8 and float16 tensor cores",
    Gpu(level=90),
    l2_bytes=50 << 20,  # the H100's
    # The H100 SXM's, from its data sheet, without sparsity.
    speeds=Speeds(bytes=3350e9, int8_ops=1979e12, float_ops=67e12),
)
