"""Export of a torch module to a cached ONNX file."""

from __future__ import annotations

import importlib.metadata
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qcompiler_models.assets import build_once, cache_root

if TYPE_CHECKING:
    from torch import nn

__all__ = ["export_once"]

_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def export_once(
    name: str,
    load: Callable[[], tuple[nn.Module, Mapping[str, Any]]],
    axes: Mapping[int, str],
    output_names: Sequence[str],
    made_by: Sequence[str] = ("torch", "onnxscript"),
    own_axes: Mapping[str, Mapping[int, str]] = MappingProxyType({}),
) -> pathlib.Path:
    """The ONNX file of a module, exported by ``torch.onnx.export(dynamo=True)`` at first use.

    The opset is what torch gives by default: 20 in torch 2.13. Weights are inside the file.

    Args:
        name: Of the model; the file is called by it and by the versions of ``made_by``.
        load: Gives the module and its keyword inputs. Not called when the file exists.
        axes: The dynamic axes of every input that ``own_axes`` does not name.
        output_names: Names of the outputs.
        made_by: Packages whose version can change what is exported.
        own_axes: Dynamic axes by name of the input.
    """
    versions = [f"{package}-{importlib.metadata.version(package)}" for package in made_by]
    path = cache_root() / "onnx" / f"{name}_{'_'.join(versions)}.onnx"

    def export(target: pathlib.Path) -> None:
        import torch

        module, example = load()
        program = torch.onnx.export(
            module,
            (),
            kwargs=dict(example),
            dynamo=True,
            dynamic_shapes={key: dict(own_axes.get(key, axes)) for key in example},
            input_names=list(example),
            output_names=list(output_names),
            verbose=False,
        )
        assert program is not None, "export with dynamo=True gives a program"
        # Paths of this machine: the file would differ from one checkout to the next.
        for node in program.model.graph.all_nodes():
            node.metadata_props.pop(_STACK_TRACE, None)
        program.save(target, external_data=False)

    return build_once(path, export)
