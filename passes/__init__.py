"""The passes: each in a file of its name, all of them in one table."""

from __future__ import annotations

from passes.allocate_bits import AllocateBits
from passes.canonicalize import Canonicalize
from passes.center_keys import CenterKeys
from passes.freeze_fake_quant import FreezeFakeQuant
from passes.fuse_epilogue import FuseEpilogue
from passes.fuse_gate_up import FuseGateUp
from passes.fuse_norm import FuseNorm
from passes.fuse_qkv import FuseQkv
from passes.fuse_rope import FuseRope
from passes.insert_fake_quant import InsertFakeQuant
from passes.legalize import Legalize
from passes.measure_cost import MeasureCost
from passes.measure_hessian import MeasureHessian
from passes.measure_sensitivity import MeasureSensitivity
from passes.observe_activations import ObserveActivations
from passes.quantize_gptq import QuantizeGptq
from passes.quantize_kv import QuantizeKv
from passes.quantize_rtn import QuantizeRtn
from passes.quantize_signround import QuantizeSignround
from passes.rotate_values import RotateValues
from passes.set_bits import SetBits
from passes.train_fake_quant import TrainFakeQuant
from qcompiler.core.pass_base import Pass

PASSES: tuple[type[Pass], ...] = (
    Canonicalize,
    RotateValues,
    MeasureHessian,
    MeasureSensitivity,
    MeasureCost,
    AllocateBits,
    SetBits,
    QuantizeKv,
    CenterKeys,
    ObserveActivations,
    QuantizeRtn,
    QuantizeGptq,
    QuantizeSignround,
    InsertFakeQuant,
    TrainFakeQuant,
    FreezeFakeQuant,
    FuseQkv,
    FuseGateUp,
    FuseEpilogue,
    FuseRope,
    FuseNorm,
    Legalize,
)
"""Every pass there is, in the order in which pipelines usually have them."""

__all__ = ["PASSES"]
