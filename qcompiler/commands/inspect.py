"""`qcompiler inspect`: what is inside an artifact, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qcompiler.commands.output import print_json, print_table
from qcompiler.core.artifact import Manifest, read_manifest, spec_bytes
from qcompiler.report.figures import human_bytes


@dataclass
class Layer:
    """One operator with weights: its scheme, what they take on disk, and what computes it."""

    name: str
    scheme: str
    bytes: int
    kernels: dict[str, str]
    """Compiled function → kernel; the empty name stands for all functions."""

    @property
    def kernel(self) -> str:
        """The kernels in words, with the functions where these differ."""
        if len(set(self.kernels.values())) <= 1:
            return next(iter(self.kernels.values()), "")
        return ", ".join(f"{function} {kernel}" for function, kernel in self.kernels.items())


def inspect(artifact: Path, *, as_json: bool) -> None:
    """Print the manifest's facts, then a line for each operator that has weights."""
    manifest = read_manifest(artifact)
    found = layers(manifest)
    weight_bytes = sum(layer.bytes for layer in found)
    all_bytes = sum(record.bytes for record in manifest.files.values())
    if as_json:
        print_json(
            {
                "model": manifest.model.name,
                "architecture": manifest.model.architecture,
                "kind": manifest.kind,
                "max_context": manifest.model.max_context,
                "target": manifest.target.name,
                "features": list(manifest.target.features),
                "compiler": manifest.compiler,
                "pipeline": list(manifest.pipeline),
                "weight_bytes": weight_bytes,
                "cache_bytes_per_token": sum(cache.token_bytes for cache in manifest.model.kv),
                "artifact_bytes": all_bytes,
                "measured": manifest.measured,
                "layers": [
                    {
                        "name": layer.name,
                        "scheme": layer.scheme,
                        "weight_bytes": layer.bytes,
                        "kernel": layer.kernel,
                    }
                    for layer in found
                ],
            }
        )
        return
    facts = [
        ("model", f"{manifest.model.name} ({manifest.model.architecture}, {manifest.kind})"),
        ("target", f"{manifest.target.name}: {' '.join(manifest.target.features)}"),
        ("compiler", f"qcompiler {manifest.compiler}"),
        ("size", f"{human_bytes(all_bytes)}, of which {human_bytes(weight_bytes)} are weights"),
    ]
    if manifest.model.max_context:
        facts.append(("context", f"{manifest.model.max_context} tokens"))
    if manifest.model.kv:
        bytes_each = sum(cache.token_bytes for cache in manifest.model.kv)
        formats = dict.fromkeys(cache.format or cache.dtype for cache in manifest.model.kv)
        facts.append(("cache", f"{human_bytes(bytes_each)} a token: {', '.join(formats)}"))
    facts += [(name, f"{value:.6g}") for name, value in sorted(manifest.measured.items())]
    print_table(("artifact", str(artifact)), facts)
    print()
    rows = [(layer.name, layer.scheme, human_bytes(layer.bytes), layer.kernel) for layer in found]
    print_table(("layer", "scheme", "size", "kernel"), rows, numbers=("size",))


def layers(manifest: Manifest) -> list[Layer]:
    """Gather the weights of a manifest by operator, in the order in which they are stored."""
    found: dict[str, Layer] = {}
    for spec in manifest.weights:
        name = operator_of(spec.name)
        if name not in found:
            scheme = manifest.plan.get(name, spec.dtype)
            found[name] = Layer(name, scheme, 0, kernels_of(manifest, name))
        found[name].bytes += spec_bytes(spec)
    return list(found.values())


def operator_of(weight: str) -> str:
    """Name the operator that a packed array belongs to.

    >>> operator_of("model.layers.0.mlp.down_proj.weight/codes")
    'model.layers.0.mlp.down_proj'
    """
    return weight.partition("/")[0].removesuffix(".weight").removesuffix(".bias")


def kernels_of(manifest: Manifest, operator: str) -> dict[str, str]:
    """Return the kernels of an operator by function; choices are listed as 'name (function)'."""
    return {
        key.removeprefix(operator).strip(" ()"): choice.kernel
        for key, choice in manifest.kernels.items()
        if key == operator or key.startswith(f"{operator} (")
    }
