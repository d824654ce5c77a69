"""Rules of which nothing came, in whole or for a table: told, since the plan names no rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.ir.walk import op_name
from qcompiler.plan import NodeDecision, Plan
from qcompiler.recipe import Rule
from qcompiler.recipe_options import DATA_DRIVEN
from qcompiler.schemes import Granularity
from qcompiler.targets.activations import weight_index
from qcompiler.targets.schema import Kernel, Scheme, Target
from qcompiler_passes.decide.cut import Solution
from qcompiler_passes.decide.reasons import place_of
from qcompiler_passes.decide.rows import telling
from qcompiler_passes.decide.units import Option, Unit
from qcompiler_passes.decide.wishes import Wish

__all__ = ["overruled", "unheard_rules"]

_OF_WEIGHTS = ("bits", "group_size", "symmetric", "algorithm", "format", "zero_point")


def unheard_rules(
    rules: Sequence[Rule],
    wishes: Mapping[str, Wish],
    units: Sequence[Unit],
    solution: Solution,
    target: Target,
) -> list[Diagnostic]:
    """Tell of rules that decide nothing, and of weights that are not stored as a rule says.

    Args:
        rules: The recipe's.
        wishes: What they make of each node, by name.
        units: All units.
        solution: What was chosen for them.
        target: Whose rows those of the options are.
    """
    deciding = {id(wish.rule) for wish in wishes.values()}
    storing = {row.op for row in target.kernels if row.scheme is Scheme.WEIGHT}
    found = []
    for index, rule in enumerate(rules):
        where = f"rules[{index}]"
        if id(rule) not in deciding:
            message = f"has no effect: later rules decide all that {rule.match!r} matches"
            hint = "put the general rule first, for the last one that matches decides"
            found.append(Diagnostic(Code.KEY_UNUSED, where, message, hint))
            continue
        keys = [key for key in _OF_WEIGHTS if getattr(rule, key) is not None]
        own = [unit for unit in units if keys and wishes[unit.name].rule is rule]
        own = [unit for unit in own if op_name(unit.head) in storing]
        if rule.bits is not None:
            by_row = [unit for unit in own if _is_by_row(unit, solution)]
            found += [_by_row(unit) for unit in by_row]
            if by_row and len(by_row) == len(own):
                continue
        tables = bool(own) and all(op_name(unit.head) == "Gather" for unit in own)
        if tables and rule.algorithm in DATA_DRIVEN:
            message = "has no effect: no data reach an embedding table, which is rounded by hqq"
            hint = "set algorithm = 'rtn', 'k-quant' or 'hqq' in the rule"
            found.append(Diagnostic(Code.KEY_UNUSED, f"{where}.algorithm", message, hint))
        heard = any(_is_heard(solution.chosen.get(unit.name)) for unit in own)
        if keys and not heard and not any(unit.wish.pinned for unit in own):
            found.append(_unheard(f"{where}.{', '.join(keys)}", own))
    return found


def overruled(
    rules: Sequence[Rule], wishes: Mapping[str, Wish], plan: Plan, target: Target
) -> list[Diagnostic]:
    """Tell of rules that a given plan does not follow.

    Args:
        rules: The recipe's.
        wishes: What they make of each node, by name.
        plan: It has a decision for each of these.
        target: Whose rows its kernels are.
    """
    rows = {row.id: row for row in target.kernels}
    found = []
    for index, rule in enumerate(rules):
        own = [plan.nodes[name] for name, wish in wishes.items() if wish.rule is rule]
        others = [item for item in own if _differs(rule, item, rows.get(item.kernel))]
        if others:
            first = others[0].kernel or others[0].verdict.value
            message = (
                f"the plan that was given decides, and of {len(others)} nodes it says otherwise"
            )
            message += f": {others[0].node} is {first}"
            hint = "edit the plan, or leave it out"
            found.append(Diagnostic(Code.KEY_UNUSED, f"rules[{index}]", message, hint))
    return found


def _differs(rule: Rule, decision: NodeDecision, row: Kernel | None) -> bool:
    """Whether a decision is another than the rule wants; float may be all that there is."""
    if row is None:
        return False
    if rule.kernel or rule.scheme != "auto":
        return row.id != rule.kernel if rule.kernel else row.scheme.value != rule.scheme
    index = weight_index(row) if row.scheme is Scheme.WEIGHT else None
    spec = None if index is None else decision.inputs[index]
    return rule.bits is not None and spec is not None and spec.width != rule.bits


def _is_heard(option: Option | None) -> bool:
    """Whether the option stores a weight in few bits as it is wanted."""
    row = None if option is None else option.kernel
    index = None if row is None or row.scheme is not Scheme.WEIGHT else weight_index(row)
    spec = None if row is None or index is None else row.inputs[index]
    return spec is not None and spec.granularity is Granularity.BLOCK


def _is_by_row(unit: Unit, solution: Solution) -> bool:
    option = solution.chosen.get(unit.name)
    return unit.head.op_type == "Gather" and option is not None and not _is_heard(option)


def _by_row(unit: Unit) -> Diagnostic:
    wish, refusal = unit.wish, telling(unit.refusals)
    why = "" if refusal is None else f": {refusal.message}"
    return Diagnostic(
        Code.GROUP_SIZE,
        place_of(unit.head),
        f"the table is stored in int8 by row, not in {wish.bits} bits and groups of"
        f" {wish.group_size} as a rule has it{why}",
        "give the rule a group_size that divides the rows",
    )


def _unheard(where: str, units: Sequence[Unit]) -> Diagnostic:
    hint = "give the rule scheme = 'weight', or take a weight-only recipe"
    refusal = telling(item for unit in units for item in unit.refusals)
    if not units:
        why = "the rule decides no layer and no table whose weight could be stored in few bits"
    elif not any(unit.wish.schemes for unit in units):
        why, hint = "what the rule decides stays in float", ""
    elif not any(Scheme.WEIGHT in unit.wish.schemes for unit in units):
        why = "what the rule decides may not be of scheme 'weight'"
    elif any(_is_heard(option) for unit in units for option in unit.options):
        why, hint = "by the target's costs something else is faster", "set force = true"
    else:
        why, hint = "no kernel stores these weights so", ""
        why += "" if refusal is None else f": {refusal.message}"
    return Diagnostic(Code.KEY_UNUSED, where, f"has no effect: {why}", hint)
