"""From units to the abstract placement problem, and its solution."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from qcompiler.analysis import regions
from qcompiler.analysis.regions import FLOAT, LOW, Mode
from qcompiler.diagnostics import Code
from qcompiler.ir.walk import outer_uses
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.rows import SPLIT_TABLE, Refusal
from qcompiler_passes.decide.sharing import Mover, share
from qcompiler_passes.decide.units import Option, Unit
from qcompiler_passes.planned import product_of_table

__all__ = ["Solution", "place", "problem_of"]


@dataclasses.dataclass(frozen=True, slots=True)
class Solution:
    """What the cut chose.

    Attributes:
        chosen: Option by unit name; units that stay in float are absent.
        modes: Mode by unit name, of every unit.
        owners: Value -> value that owns its parameters, where that is another.
        cost_us: Predicted time of all units and conversions.
    """

    chosen: Mapping[str, Option]
    modes: Mapping[str, Mode]
    owners: Mapping[str, str]
    cost_us: float


def problem_of(graph: ir.Graph, units: Sequence[Unit], prices: Prices) -> regions.Problem:
    """The placement problem of the units that have a choice (or a duty) about low precision.

    The others are float on both sides: what they write is float, what they read is read in float.
    """
    active = [unit for unit in units if any(option.mode != FLOAT for option in unit.options)]
    low_reads = {(unit.head, index) for unit in active for index in unit.reads}
    tensors: dict[ir.Value, None] = {}
    made = []
    for unit in active:
        reads = [value for index in unit.reads if (value := unit.head.inputs[index]) is not None]
        writes = [value for value in unit.outputs if value.name]
        tensors.update(dict.fromkeys([*reads, *writes]))
        made.append(
            regions.Unit(
                unit.name,
                tuple(dict.fromkeys(str(value.name) for value in reads)),
                tuple(str(value.name) for value in writes),
                unit.costs(),
            )
        )
    nested = outer_uses(graph)
    return regions.Problem(
        tuple(made),
        tuple(
            regions.Tensor(
                str(value.name),
                prices.quantize(value),
                prices.dequantize(value),
                value.is_graph_output()
                or value in nested
                or any((use.node, use.idx) not in low_reads for use in value.uses()),
            )
            for value in tensors
        ),
    )


def place(graph: ir.Graph, units: Sequence[Unit], prices: Prices) -> Solution:
    """Choose an option, or float, for every unit.

    Where unifiers tie values together of which none covers the ranges of all, one of them is taken
    out and the rest is placed anew; so is an embedding table that would no longer be one array with
    the output layer that reads it transposed and stays in float.
    """
    while True:
        placement = regions.solve(problem_of(graph, units, prices))
        modes = {unit.name: placement.modes.get(unit.name, FLOAT) for unit in units}
        chosen = {
            unit.name: option
            for unit in units
            if (option := unit.cheapest(modes[unit.name])) is not None
        }
        sharing = share(_movers(units, chosen))
        conflicts = _split_tables(units, chosen)
        if sharing.conflict is not None:
            conflicts[sharing.conflict] = Refusal(
                Code.CONDITION,
                "its inputs already share parameters elsewhere, and no range would cover all",
            )
        if not conflicts:
            break
        for unit in units:
            if unit.name in conflicts:
                unit.options.clear()
                unit.refusals.append(conflicts[unit.name])
    passive = [unit for unit in units if unit.name not in placement.modes]
    cost_us = placement.cost_us + sum(
        chosen[unit.name].us if unit.name in chosen else unit.float_us or 0.0 for unit in passive
    )
    return Solution(chosen, modes, sharing.owners, cost_us)


def _split_tables(units: Sequence[Unit], chosen: Mapping[str, Option]) -> dict[str, Refusal]:
    """Tables that nobody asked for by a rule, quantized beside a tied product in float."""
    found = {}
    for unit in units:
        if unit.head.op_type != "Gather" or unit.name not in chosen or unit.wish.rule is not None:
            continue
        product = product_of_table(unit.head)
        if product is not None and str(product.name) not in chosen:
            found[unit.name] = SPLIT_TABLE
    return found


def _movers(units: Sequence[Unit], chosen: Mapping[str, Option]) -> list[Mover]:
    return [
        Mover(
            unit.name,
            tuple(dict.fromkeys(str(unit.head.inputs[i].name) for i in unit.reads)),  # type: ignore[union-attr]
            tuple(str(value.name) for value in unit.outputs if value.name),
        )
        for unit in units
        if (option := chosen.get(unit.name)) and option.kernel is None and option.mode == LOW
    ]
