"""`qcompiler targets`, `passes` and `pipelines`: what there is to choose from."""

from __future__ import annotations

from qcompiler.commands.output import print_table
from qcompiler.core.errors import UnsupportedError
from qcompiler.presets import find_pipeline, preset_names
from targets import TARGETS, best, cpu_features


def list_targets() -> None:
    """Print every target, whether this machine runs it, and which one is native to it."""
    features = cpu_features()
    try:
        native = best(TARGETS, features).name
    except UnsupportedError:
        native = None
    rows = []
    for target in TARGETS:
        here = "native" if target.name == native else "yes"
        if target.gpu is not None:
            major, minor = divmod(target.gpu.level, 10)
            here = f"with a GPU of compute capability {major}.{minor} or more"
        if lacking := sorted(target.features - features):
            here = f"no: lacks {' '.join(lacking)}"
        rows.append((target.name, here, target.summary))
    print_table(("target", "runs here", "machines"), rows)


def list_pipelines() -> None:
    """Print every preset with its passes."""
    configs = [(name, find_pipeline(name)) for name in preset_names()]
    rows = [
        (name, config.summary, ", ".join(step.name for step in config.steps))
        for name, config in configs
    ]
    print_table(("pipeline", "meaning", "passes"), rows)
