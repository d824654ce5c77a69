"""What the recipe wants of each node: its schemes, and the last of its rules that matches."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.ir.provenance import module_of, origins
from qcompiler.ir.walk import op_name
from qcompiler.recipe import Recipe, Rule, WeightOptions
from qcompiler.recipe_options import DoubleQuantOptions
from qcompiler.targets.schema import Scheme

__all__ = ["Wish", "allot", "pin", "rule_on", "wishes_of"]

_WILD = frozenset("*?[")
_CANONICAL = {"Gemm": "MatMul", "BatchNormalization": "Conv", "FusedMatMul": "MatMul"}


@dataclasses.dataclass(frozen=True, slots=True)
class Wish:
    """What is wanted of one node.

    Attributes:
        schemes: Schemes to choose from, best first; empty keeps the node in float.
        force: Do it whatever it costs.
        bits: Weight bits of the weight-only scheme.
        group_size: Elements per scale of the weight-only scheme; -1 is a whole column.
        symmetric: Whether weight-only blocks are symmetric.
        algorithm: How weights of the weight-only scheme are rounded.
        format: What they are stored as.
        double_quant: How their scales are quantized again.
        float_zero: Whether their zero points are floats.
        tied: The node gathers from the weight of a product, and has that product's wish.
        kernel: The only kernel row to use, or "".
        rule: The rule that decided, or None where the recipe itself does.
        named: The rule names this very node and no other.
        pinned: Why the node stays in float whatever recipe and rules say, or None.
    """

    schemes: tuple[Scheme, ...]
    force: bool
    bits: int
    group_size: int
    symmetric: bool
    algorithm: str = "rtn"
    format: str = "int"
    double_quant: DoubleQuantOptions | None = None
    float_zero: bool = False
    tied: bool = False
    kernel: str = ""
    rule: Rule | None = None
    named: bool = False
    pinned: Diagnostic | None = None

    @property
    def is_demand(self) -> bool:
        """Whether a rule asks for low precision, and not merely lets the recipe choose."""
        return self.rule is not None and (bool(self.kernel) or self.rule.scheme not in _PASSIVE)

    @property
    def says_bits(self) -> bool:
        """Whether a rule says in how many bits the weight is stored."""
        return self.rule is not None and self.rule.bits is not None


_OF_WEIGHTS = ("rtn", "k-quant", "hqq")  # algorithms that find float zero points
_PASSIVE = ("auto", "float")


def wishes_of(
    nodes: Iterable[ir.Node], recipe: Recipe, removed: Mapping[str, str]
) -> dict[str, Wish]:
    """The wish for each node, by node name.

    Args:
        nodes: Every node of the model, nested bodies included.
        recipe: Rules in order; the last one that matches a node decides.
        removed: The user's nodes that are gone and the pass that folded each, for the message.

    Raises:
        QcError: QC404, a rule matches no node; QC403, a regular expression does not parse, or what
            a rule asks of weights does not go with what the recipe says of all.
    """
    nodes = list(nodes)
    plain = _wish(recipe, None, named=False)
    wishes = {str(node.name): plain for node in nodes}
    for index, rule in enumerate(recipe.rules):
        _check_weights(rule, recipe.weights, f"rules[{index}]")
        matches = _matcher(rule, f"rules[{index}].match")
        exact = not rule.match.startswith("re:") and not _WILD.intersection(rule.match)
        hit = False
        for node in nodes:
            if rule.op is not None and rule.op.removeprefix("ai.onnx:") != op_name(node):
                continue
            if _hits(matches, node):
                hit = True
                named = exact and rule.match in {str(node.name), *origins(node)}
                wishes[str(node.name)] = _wish(recipe, rule, named=named)
        if not hit:
            raise _matches_nothing(rule, index, nodes, removed)
    return wishes


def rule_on(node: ir.Node, rules: Sequence[Rule]) -> Rule | None:
    """The last rule that matches a node.

    Raises:
        QcError: QC403, a regular expression does not parse.
    """
    for index, rule in reversed(list(enumerate(rules))):
        right = rule.op is None or rule.op.removeprefix("ai.onnx:") == op_name(node)
        if right and _hits(_matcher(rule, f"rules[{index}].match"), node):
            return rule
    return None


def _hits(matches: Callable[[str], bool], node: ir.Node) -> bool:
    names = {str(node.name), *origins(node), *_enclosing(module_of(node))}
    return any(map(matches, names))


def pin(wishes: Mapping[str, Wish], pinned: Mapping[str, Diagnostic]) -> dict[str, Wish]:
    """The wishes with some nodes, by name, in float."""
    return {
        name: dataclasses.replace(wish, schemes=(), kernel="", rule=None, pinned=pinned[name])
        if name in pinned
        else wish
        for name, wish in wishes.items()
    }


def allot(wishes: Mapping[str, Wish], bits: Mapping[str, int]) -> dict[str, Wish]:
    """The wishes with bits, by name, that a budget chose."""
    return {
        name: dataclasses.replace(wish, bits=bits[name]) if name in bits else wish
        for name, wish in wishes.items()
    }


def _wish(recipe: Recipe, rule: Rule | None, *, named: bool) -> Wish:
    weights = recipe.weights
    if rule is None:
        return Wish(
            recipe.schemes,
            recipe.force,
            weights.bits,
            weights.group_size,
            weights.symmetric,
            weights.algorithm,
            weights.format,
            weights.double_quant,
            weights.zero_point == "float" and weights.algorithm in _OF_WEIGHTS,
        )
    schemes = recipe.schemes
    if rule.scheme == "float":
        schemes = ()
    elif rule.scheme != "auto":
        schemes = (Scheme(rule.scheme),)
    return Wish(
        schemes,
        recipe.force or rule.force,
        weights.bits if rule.bits is None else rule.bits,
        weights.group_size if rule.group_size is None else rule.group_size,
        weights.symmetric if rule.symmetric is None else rule.symmetric,
        rule.algorithm or weights.algorithm,
        rule.format or weights.format,
        weights.double_quant,
        (rule.zero_point or weights.zero_point) == "float"
        and (rule.algorithm or weights.algorithm) in _OF_WEIGHTS,
        False,
        rule.kernel or "",
        rule,
        named,
    )


def _check_weights(rule: Rule, weights: WeightOptions, where: str) -> None:
    form = rule.format or weights.format
    algorithm = rule.algorithm or weights.algorithm
    symmetric = weights.symmetric if rule.symmetric is None else rule.symmetric
    what, hint = "", ""
    if rule.bits not in (None, 4) and form != "int":
        what = f"bits = {rule.bits}, and {form} has codes of 4 bits"
        hint = "set format = 'int' in the rule, or bits = 4"
    elif rule.zero_point == "float" and symmetric:
        what = "float zero points of symmetric groups"
        hint = "set symmetric = false in the rule"
    elif rule.zero_point == "float" and algorithm not in _OF_WEIGHTS:
        what = f"float zero points, which {algorithm} does not find"
        hint = "set algorithm = 'hqq' in the rule, or zero_point = 'int'"
    if what:
        raise QcError(Code.RECIPE_KEY, where, f"asks for {what}", hint)


def _matcher(rule: Rule, where: str) -> Callable[[str], bool]:
    if not rule.match.startswith("re:"):
        pattern = re.compile(fnmatch.translate(rule.match))
        return lambda name: name == rule.match or pattern.match(name) is not None
    try:
        expression = re.compile(rule.match[len("re:") :])
    except re.error as error:
        raise QcError(
            Code.RECIPE_KEY, where, f"{rule.match!r} is no regular expression: {error}"
        ) from error
    return lambda name: expression.fullmatch(name) is not None


def _enclosing(module: str) -> list[str]:
    """A module path and those around it: a rule on a block means all that is in it."""
    parts = module.split(".") if module else []
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _matches_nothing(
    rule: Rule, index: int, nodes: list[ir.Node], removed: Mapping[str, str]
) -> QcError:
    ops = {op_name(node) for node in nodes}
    where = f"rules[{index}]"
    asked = f"match = {rule.match!r}" + (f", op = {rule.op!r}" if rule.op else "")
    message = f"{asked} matches no node"
    matches = _matcher(rule, where)
    folded = sorted(name for name in removed if matches(name))
    if rule.op is not None and rule.op.removeprefix("ai.onnx:") not in ops:
        hint = nearest(rule.op, ops)
        if (stands_for := _CANONICAL.get(rule.op)) in ops:
            hint = f"{rule.op} nodes were rewritten to {stands_for} before: name that"
    elif folded and rule.match != "*":
        hint = f"{folded[0]!r} was folded into other nodes by {removed[folded[0]]}"
    else:
        known = {str(node.name) for node in nodes}
        known.update(name for node in nodes for name in origins(node))
        known.update(path for node in nodes for path in _enclosing(module_of(node)))
        hint = nearest(rule.match.removeprefix("re:"), known)
    return QcError(Code.RULE_MATCHES_NOTHING, where, message, hint, rule=index)
