"""Print a program as stable text, for golden tests and dumps."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from qcompiler.core.program import Program

_DTYPES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
}


def print_program(program: Program) -> str:
    """Return the graph as text: a line a node, values numbered, sizes named by first use."""
    return print_graph(program.graph, f"{program.info.kind} {program.stage}")


def print_graph(graph: fx.Graph, title: str = "") -> str:
    """Return a graph as text; see `print_program`."""
    printer = _Printer()
    lines = [line for node in graph.nodes if (line := printer.line(node)) is not None]
    return "\n".join([title, *lines] if title else lines) + "\n"


class _Printer:
    def __init__(self) -> None:
        self.names: dict[fx.Node, str] = {}
        self.symbols: dict[str, str] = {}
        self.count = 0

    def line(self, node: fx.Node) -> str | None:
        if node.op == "get_attr":
            self.names[node] = f"@{node.target}"
            return None
        if node.op == "output":
            return f"return {self.text(node.args[0])}"
        if node.op == "placeholder":
            self.names[node] = f"%{node.target}"
            return f"input %{node.target}: {self.type(node)}"
        self.names[node] = f"%{self.count}"
        self.count += 1
        arguments = [self.text(a) for a in node.args]
        arguments += [f"{k}={self.text(v)}" for k, v in node.kwargs.items()]
        return (
            f"{self.names[node]} = {target_name(node)}({', '.join(arguments)}): {self.type(node)}"
        )

    def type(self, node: fx.Node) -> str:
        return self.shape(node.meta.get("val"))

    def shape(self, val: Any) -> str:
        if isinstance(val, torch.Tensor):
            dims = ", ".join(self.size(d) for d in val.shape)
            return f"{_DTYPES.get(val.dtype, str(val.dtype))}[{dims}]"
        if isinstance(val, tuple | list):
            return f"({', '.join(self.shape(v) for v in val)})"
        return "int" if isinstance(val, int | torch.SymInt) else "?"

    def size(self, dim: int | torch.SymInt) -> str:
        if isinstance(dim, int):
            return str(dim)
        text = str(dim)
        for symbol in sorted(map(str, dim.node.expr.free_symbols), key=lambda s: (-len(s), s)):
            short = self.symbols.setdefault(symbol, f"s{len(self.symbols)}")
            text = text.replace(symbol, f"\0{short}\0")
        return text.replace("\0", "")

    def text(self, argument: Any) -> str:
        if isinstance(argument, fx.Node):
            return self.names[argument]
        if isinstance(argument, tuple | list):
            return f"[{', '.join(self.text(a) for a in argument)}]"
        return str(argument)


def target_name(node: fx.Node) -> str:
    """Name what a node calls: `rms_norm` for one of ours, `aten.add.Tensor` for one of torch's."""
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))
