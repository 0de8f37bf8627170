"""Turn a model, wherever it comes from, into a program: a graph and the weights it names."""

from qcompiler.frontend.capture import capture

__all__ = ["capture"]
