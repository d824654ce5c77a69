"""Where to compute in low precision: the cheapest legal placement, found as a minimum s-t cut.

Nothing here knows ONNX. A problem has *units*, which compute, and *tensors*, which they write and
read. A unit reads its tensors on one side (float or low precision) and writes on one side, and has
a cost for each pair of sides that it can do. A tensor written on one side and read on the other
pays for one conversion, however many readers there are.

Every side is a vertex that is in the source set when it is low precision. The cost of a unit is a
function of two binary variables and that of a conversion a monotone function of its readers; both
are submodular, so a minimum cut is an exact minimum (Kolmogorov and Zabih 2004, "What energy
functions can be minimized via graph cuts?").
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import networkx as nx

__all__ = ["FLOAT", "LOW", "Mode", "Placement", "Problem", "Tensor", "Unit", "cost_of", "solve"]

Mode = tuple[bool, bool]
"""(reads low precision, writes low precision)."""

FLOAT: Mode = (False, False)
LOW: Mode = (True, True)

# Capacities are integers, so that the flow ends and ties are ties: picoseconds for microseconds.
_PER_US = 1_000_000
_SOURCE, _SINK = "source", "sink"


@dataclasses.dataclass(frozen=True, slots=True)
class Unit:
    """Something that computes.

    Attributes:
        name: Unique among units.
        reads: Names of the tensors on its input side.
        writes: Names of the tensors on its output side.
        costs: Microseconds by mode; a mode that is not here is impossible.
    """

    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    costs: Mapping[Mode, float]


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """Something that is written once and read any number of times.

    A tensor that no unit writes is float.

    Attributes:
        name: Unique among tensors.
        quantize_us: Price of making it low precision when it was written in float.
        dequantize_us: Price of the other way.
        float_reader: Something outside the problem (a graph output) reads it in float.
    """

    name: str
    quantize_us: float
    dequantize_us: float
    float_reader: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """Units and tensors; every tensor that a unit names must be there."""

    units: tuple[Unit, ...]
    tensors: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Placement:
    """A solution.

    Attributes:
        modes: Mode by unit name.
        cost_us: All units and conversions.
    """

    modes: Mapping[str, Mode]
    cost_us: float


def cost_of(problem: Problem, modes: Mapping[str, Mode]) -> float:
    """Microseconds of a placement, conversions included; infinite when it is impossible."""
    total = sum(unit.costs.get(modes[unit.name], float("inf")) for unit in problem.units)
    written = {name: modes[unit.name][1] for unit in problem.units for name in unit.writes}
    read: dict[str, set[bool]] = collections.defaultdict(set)
    for unit in problem.units:
        for name in unit.reads:
            read[name].add(modes[unit.name][0])
    for tensor in problem.tensors:
        low = written.get(tensor.name, False)
        if not low and True in read[tensor.name]:
            total += tensor.quantize_us
        if low and (tensor.float_reader or False in read[tensor.name]):
            total += tensor.dequantize_us
    return total


def solve(problem: Problem) -> Placement:
    """The cheapest placement; among equally cheap ones the one with the fewest units in low.

    Raises:
        ValueError: A unit has no mode, or its modes do not make a submodular function (it would
            have to prefer that its input and output differ), or a cost is negative.
    """
    network = _Network()
    for unit in problem.units:
        network.add_unit(unit)
    writer = {name: unit for unit in problem.units for name in unit.writes}
    readers: dict[str, list[str]] = collections.defaultdict(list)
    for unit in problem.units:
        for name in unit.reads:
            readers[name].append(_in(unit))
    for tensor in problem.tensors:
        born = _out(writer[tensor.name]) if tensor.name in writer else _SINK
        read = readers[tensor.name] + [_SINK] * tensor.float_reader
        network.add_tensor(tensor, born, read)
    low = network.low_side()
    modes = {
        unit.name: (network.root(_in(unit)) in low, network.root(_out(unit)) in low)
        for unit in problem.units
    }
    return Placement(modes, cost_of(problem, modes))


def _in(unit: Unit) -> str:
    return f"in {unit.name}"


def _out(unit: Unit) -> str:
    return f"out {unit.name}"


class _Network:
    """Capacities between classes of vertices that must be on one side."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._finite: collections.Counter[tuple[str, str]] = collections.Counter()
        self._endless: set[tuple[str, str]] = set()

    def root(self, vertex: str) -> str:
        """The representative of the vertex's class; the terminals represent theirs."""
        while vertex in self._parent:
            vertex = self._parent[vertex]
        return vertex

    def add_unit(self, unit: Unit) -> None:
        """Vertices and edges of one unit."""
        costs = {mode: _capacity(cost) for mode, cost in unit.costs.items()}
        if not costs:
            raise ValueError(f"{unit.name} has no mode")
        read, write = _in(unit), _out(unit)
        for vertex, index in ((read, 0), (write, 1)):
            sides = {mode[index] for mode in costs}
            if len(sides) == 1:
                self._parent[vertex] = _SOURCE if sides.pop() else _SINK
        if len(costs) == 1:
            return
        if read in self._parent or write in self._parent:
            free = write if read in self._parent else read
            cheap = {mode[1] if free is write else mode[0]: cost for mode, cost in costs.items()}
            self._prefer(free, cheap[True] - cheap[False])
        elif costs.keys() == {FLOAT, LOW}:
            self._parent[write] = read
            self._prefer(read, costs[LOW] - costs[FLOAT])
        else:
            self._pair(unit.name, read, write, costs)

    def add_tensor(self, tensor: Tensor, born: str, readers: Iterable[str]) -> None:
        """Edges of the conversions of one tensor."""
        source = self.root(born)
        read = dict.fromkeys(vertex for name in readers if (vertex := self.root(name)) != source)
        if source != _SOURCE:
            low = [vertex for vertex in read if vertex != _SINK]
            self._any(f"quantize {tensor.name}", low, source, tensor.quantize_us, to_source=True)
        if source != _SINK:
            high = [vertex for vertex in read if vertex != _SOURCE]
            self._any(f"dequantize {tensor.name}", high, source, tensor.dequantize_us)

    def low_side(self) -> set[str]:
        """Classes in low precision: what the source still reaches when the flow is at its maximum.

        That is the smallest source set among the minimum cuts.
        """
        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from((_SOURCE, _SINK))
        for (tail, head), capacity in self._finite.items():
            if capacity:
                graph.add_edge(tail, head, capacity=capacity)
        graph.add_edges_from(self._endless)  # no capacity: never cut
        residual = nx.algorithms.flow.boykov_kolmogorov(graph, _SOURCE, _SINK)
        seen, stack = {_SOURCE}, [_SOURCE]
        while stack:
            for vertex, edge in residual[stack.pop()].items():
                if vertex not in seen and edge["flow"] < edge["capacity"]:
                    seen.add(vertex)
                    stack.append(vertex)
        return seen

    def _pair(self, name: str, read: str, write: str, costs: Mapping[Mode, int]) -> None:
        # E(i, o) = E(0,0) + i (E(1,0) - E(0,0)) + o (E(1,1) - E(1,0)) + [o and not i] excess
        if FLOAT not in costs or LOW not in costs:
            raise ValueError(f"{name} must have a mode in float and one in low precision")
        narrowing = costs.get((True, False))
        widening = costs.get((False, True))
        if narrowing is None:
            assert widening is not None, "two modes alone were merged"
            self._prefer(write, widening - costs[FLOAT])
            self._prefer(read, costs[LOW] - widening)
            self._forbid(read, write)
            return
        self._prefer(read, narrowing - costs[FLOAT])
        self._prefer(write, costs[LOW] - narrowing)
        if widening is None:
            self._forbid(write, read)
            return
        excess = widening + narrowing - costs[FLOAT] - costs[LOW]
        if excess < 0:
            raise ValueError(f"the modes of {name} are not submodular")
        self._finite[write, read] += excess

    def _prefer(self, vertex: str, extra: int) -> None:
        """The vertex costs ``extra`` more in low precision than in float."""
        if extra > 0:
            self._finite[vertex, _SINK] += extra
        elif extra < 0:
            self._finite[_SOURCE, vertex] -= extra

    def _forbid(self, low: str, high: str) -> None:
        """The first may not be low while the second is float."""
        self._endless.add((low, high))

    def _any(
        self, name: str, readers: Sequence[str], born: str, us: float, *, to_source: bool = False
    ) -> None:
        """Pay once when any reader is on the other side than ``born``."""
        terminal = _SOURCE if to_source else _SINK
        if terminal in readers:
            readers = [terminal]
        hub = readers[0] if len(readers) == 1 else name
        if not readers:
            return
        pay = (hub, born) if to_source else (born, hub)
        self._finite[pay] += _capacity(us)
        if hub == name:  # a vertex that follows its readers joins them into one
            self._endless.update((r, hub) if to_source else (hub, r) for r in readers)


def _capacity(us: float) -> int:
    if not us >= 0:
        raise ValueError(f"a cost of {us} us is not a time")
    return round(us * _PER_US)
