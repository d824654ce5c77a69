"""Decide for every node in what precision it computes."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar

import onnx_ir as ir

from qcompiler.diagnostics import Code, Diagnostic, QcError, nearest
from qcompiler.ir.walk import all_nodes, op_name
from qcompiler.pipeline.contract import Fact, Pass, PassResult, Phase, State
from qcompiler.plan import Plan, Verdict
from qcompiler.recipe import Recipe, Rule
from qcompiler.targets.activations import offered_activations
from qcompiler.targets.schema import WEIGHTED, Scheme, Target
from qcompiler_passes.decide.assemble import assemble
from qcompiler_passes.decide.check_plan import check_plan
from qcompiler_passes.decide.cut import Solution, place
from qcompiler_passes.decide.input_layers import input_layers
from qcompiler_passes.decide.prices import Prices
from qcompiler_passes.decide.reasons import place_of
from qcompiler_passes.decide.rows import Refusal, Rows, telling
from qcompiler_passes.decide.ties import follow_ties, stored_twice
from qcompiler_passes.decide.unheard_rules import overruled, unheard_rules
from qcompiler_passes.decide.units import Unit, survey
from qcompiler_passes.decide.weight_forms import weight_forms
from qcompiler_passes.decide.wishes import Wish, allot, pin, wishes_of

__all__ = ["PlacePrecision"]

# Less than this share of the predicted time is not worth a word about calibration.
_WORTH_TELLING = 0.02


@dataclasses.dataclass(frozen=True)
class PlacePrecision(Pass):
    """The cheapest legal plan, by minimum cut over the target's rows and costs.

    Every node is first fitted to the target's rows under the recipe's rules; what it then can do,
    and at what price, becomes a unit of :mod:`qcompiler.analysis.regions`. A plan that the state
    already holds is checked against model and target and kept.
    """

    name: ClassVar[str] = "place-precision"
    phase: ClassVar[Phase] = Phase.DECIDE
    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.SHAPES})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.PLAN})

    def run(self, model: ir.Model, state: State) -> PassResult:
        """Fill ``state.plan``, or check it; the model is untouched.

        Raises:
            QcError: QC404 a rule matches nothing, QC405 the target cannot do what the recipe or a
                rule demands, QC408 a given plan does not fit, QC410 calibration data is missing.
        """
        assert state.shapes is not None, "the runner checks what a pass needs"
        recipe, target = state.recipe, state.target
        if state.plan is not None:
            check_plan(state.plan, model, state)
        asked = wishes_of(all_nodes(model), recipe, state.removed)
        if state.plan is not None:
            told = overruled(recipe.rules, asked, state.plan, target)
            return PassResult(modified=False, diagnostics=told)
        wishes = pin(asked, state.pinned)
        wishes = pin(wishes, input_layers(model.graph, wishes))
        wishes = allot(wishes, state.bits)
        wishes = follow_ties(model.graph, wishes)
        static = state.feeds is not None or state.statistics is not None
        _check_demands(recipe, state, static)
        prices = Prices(target, state.shapes)
        rows = Rows(
            target,
            state.form,
            state.shapes,
            embeddings=recipe.embeddings,
            activations=recipe.activations,
            granularity=recipe.weights.granularity,
        )
        units = survey(model.graph, rows, prices, wishes, static=static)
        _check_rules(units, wishes, target)
        solution = place(model.graph, units, prices)
        diagnostics: list[Diagnostic] = []
        if not static and any(Scheme.STATIC in wish.schemes for wish in wishes.values()):
            more = survey(model.graph, rows, prices, wishes, static=True)
            better = place(model.graph, more, prices)
            _retell(units, more, solution, better)
            diagnostics += _would_help(solution, better, prices)
        diagnostics += _references(solution, target)
        diagnostics += weight_forms(units, solution, state.shapes, state.form)
        diagnostics += _per_tensor(units, solution, state)
        diagnostics += unheard_rules(recipe.rules, asked, units, solution, target)
        state.plan = assemble(model, units, solution, state, prices)
        diagnostics += stored_twice(model.graph, state.plan)
        if not any(told.code is Code.CALIBRATION_WOULD_HELP for told in diagnostics):
            diagnostics += _nothing(state.plan, recipe)
        return PassResult(modified=False, diagnostics=diagnostics)


def _check_demands(recipe: Recipe, state: State, static: bool) -> None:
    """Refuse what the recipe as a whole, or one of its rules, can never get."""
    target, form = state.target, state.form
    have = {row.scheme for row in target.kernels if form in row.forms}
    offered = ", ".join(sorted(scheme.value for scheme in have)) or "none"
    if recipe.schemes and not have.intersection(recipe.schemes):
        wanted = ", ".join(scheme.value for scheme in recipe.schemes)
        raise QcError(
            Code.TARGET_CANNOT,
            f"recipe {recipe.name}",
            f"{target.name} has no kernel of scheme {wanted} in form {form.value},"
            f" it has {offered}",
            "choose another recipe, form or target",
        )
    types = offered_activations(target, form)
    asks = Scheme.STATIC in recipe.schemes and recipe.activations != "auto"
    if asks and Scheme.STATIC in have and recipe.activations not in types:
        raise QcError(
            Code.TARGET_CANNOT,
            "activations",
            f"{target.name} has no static kernel with activations of {recipe.activations} in form"
            f" {form.value}, it has {', '.join(types)}",
            "choose another recipe, form or target",
        )
    if recipe.schemes == (Scheme.STATIC,) and not static:
        raise QcError(
            Code.NEEDS_CALIBRATION,
            f"recipe {recipe.name}",
            "static kernels need ranges, and there is no calibration data",
            "give calibration=..., or use the recipe 'dynamic-int8' or 'auto'",
        )
    for index, rule in enumerate(recipe.rules):
        scheme = _scheme_of(rule, index, target)
        if scheme is None:
            continue
        if scheme not in have:
            raise QcError(
                Code.TARGET_CANNOT,
                f"rules[{index}]",
                f"{target.name} has no kernel of scheme {scheme.value} in form {form.value},"
                f" it has {offered}",
            )
        if scheme is Scheme.STATIC and not static:
            raise QcError(
                Code.NEEDS_CALIBRATION,
                f"rules[{index}]",
                "the rule wants static kernels, and there is no calibration data",
                "give calibration=..., or use scheme = 'token' or 'dynamic'",
            )


def _scheme_of(rule: Rule, index: int, target: Target) -> Scheme | None:
    """The scheme that a rule demands, or None."""
    if rule.kernel:
        try:
            return target.kernel(rule.kernel).scheme
        except KeyError as error:
            raise QcError(
                Code.TARGET_CANNOT,
                f"rules[{index}].kernel",
                f"{target.name} has no kernel {rule.kernel!r}",
                nearest(rule.kernel, {row.id for row in target.kernels}),
            ) from error
    return None if rule.scheme in ("auto", "float") else Scheme(rule.scheme)


def _check_rules(units: Sequence[Unit], wishes: Mapping[str, Wish], target: Target) -> None:
    """Refuse a rule that demands low precision where no node, or not the one it names, has it.

    Raises:
        QcError: QC405 with what stands in the way.
    """
    able: dict[int, bool] = {}
    failed: dict[int, tuple[Unit, Wish]] = {}
    for unit in units:
        for node in (unit.head, *unit.followers):
            wish = wishes[str(node.name)]
            if not wish.is_demand:
                continue
            key = id(wish.rule)
            able[key] = able.get(key, False) or bool(unit.options)
            if not unit.options:
                if wish.named:
                    raise _cannot(unit, wish, target)
                failed.setdefault(key, (unit, wish))
    for key, (unit, wish) in failed.items():
        if not able[key]:
            raise _cannot(unit, wish, target)
    for name, wish in wishes.items():
        if wish.is_demand and id(wish.rule) not in able:
            raise QcError(
                Code.TARGET_CANNOT,
                name,
                "the rule asks for low precision, but matches only nodes in bodies of If, Loop or"
                " Scan, which stay in float",
                "narrow the rule, or remove it",
                because=Code.IN_SUBGRAPH.id,
            )


def _cannot(unit: Unit, wish: Wish, target: Target) -> QcError:
    assert wish.rule is not None, "only rules demand"
    refusals = unit.refusals
    if wish.kernel and target.kernel(wish.kernel).op != op_name(unit.head):
        row = target.kernel(wish.kernel)
        refusals = [
            Refusal(Code.NO_KERNEL, f"{row.id} computes {row.op}, this is a {op_name(unit.head)}")
        ]
    refusal = telling(refusals) or Refusal(
        Code.NO_KERNEL, f"there is no kernel for {unit.head.op_type}"
    )
    asked = wish.kernel or wish.rule.scheme
    return QcError(
        Code.TARGET_CANNOT,
        place_of(unit.head),
        f"the rule on {wish.rule.match!r} asks for {asked}, and {target.name} cannot:"
        f" {refusal.message}",
        refusal.hint or "narrow the rule, or remove it",
        because=refusal.code.id,
    )


def _retell(units: Sequence[Unit], more: Sequence[Unit], now: Solution, better: Solution) -> None:
    """Give float units the reason that matters: calibration where it would help, else the rest.

    Args:
        units: Without calibration data; their options and refusals are edited.
        more: The same units with it.
        now: What was chosen without.
        better: What would be chosen with.
    """
    for unit, other in zip(units, more, strict=True):
        if unit.name in now.chosen:
            continue
        if unit.name in better.chosen and other.options and other.options[0].kernel is not None:
            unit.options.clear()
            unit.refusals[:] = [r for r in unit.refusals if r.code is Code.NO_CALIBRATION]
        else:  # what stands in the way even with data: costs, or a condition
            unit.options[:], unit.refusals[:] = other.options, other.refusals
            unit.reads = other.reads


def _nothing(plan: Plan, recipe: Recipe) -> list[Diagnostic]:
    """Tell that a recipe which wants low precision got none, and what mostly stood in the way."""
    asks = bool(recipe.schemes) or any(
        rule.scheme not in ("auto", "float") for rule in recipe.rules
    )
    reasons = [item.reason for item in plan if item.reason is not None]
    quantized = any(item.verdict is Verdict.QUANTIZED for item in plan)
    if not asks or quantized or any(item.code is Code.ALREADY_QUANTIZED for item in reasons):
        return []
    kept = [item for item in plan if item.op in WEIGHTED and item.reason is not None]
    common = collections.Counter((item.op, item.reason.code) for item in kept if item.reason)
    if not common:
        message = f"the model has no {', '.join(WEIGHTED[:-1])} or {WEIGHTED[-1]}"
        return [Diagnostic(Code.NOTHING_QUANTIZED, f"recipe {recipe.name}", message)]
    (op, code), count = common.most_common(1)[0]
    reason = next(i.reason for i in kept if i.reason and (i.op, i.reason.code) == (op, code))
    message = (
        f"nothing is quantized; {count} of {len(kept)} nodes that may have weights are {op} kept in"
        f" float by {code.id}, as {reason.where}: {reason.message}"
    )
    hint = reason.hint
    return [Diagnostic(Code.NOTHING_QUANTIZED, f"recipe {recipe.name}", message, hint)]


def _references(solution: Solution, target: Target) -> list[Diagnostic]:
    rows = [option.kernel for option in solution.chosen.values()]
    found = [
        row for row in rows if row is not None and row.reference and row.scheme is not Scheme.WEIGHT
    ]
    if not found:
        return []
    kinds = ", ".join(sorted({row.id for row in found}))
    return [
        Diagnostic(
            Code.REFERENCE_ONLY,
            target.name,
            f"{len(found)} nodes ({kinds}) run as DequantizeLinear and a float operator: nothing is"
            " faster, the outputs are those of the precision",
            "use it to see what the precision costs, and compile for a target that has the kernels",
            {"nodes": len(found)},
        )
    ]


def _per_tensor(units: Sequence[Unit], solution: Solution, state: State) -> list[Diagnostic]:
    """Tell of nodes that got scheme dynamic though the recipe lists token before it."""
    found = []
    for unit in units:
        option, schemes = solution.chosen.get(unit.name), unit.wish.schemes
        row = option.kernel if option is not None else None
        if row is None or row.scheme is not Scheme.DYNAMIC or unit.wish.kernel:
            continue
        if Scheme.TOKEN in schemes and schemes.index(Scheme.TOKEN) < schemes.index(row.scheme):
            found.append(unit.name)
    if not found:
        return []
    target = state.target
    message = (
        f"{len(found)} nodes quantize activations by one scale per tensor: {target.name} has no"
        f" kernel with scales per token that fits them in form {state.form.value}"
    )
    hint = "outliers of one token cost the others precision; static scales, or form 'ort', avoid it"
    values = {"nodes": len(found)}
    return [Diagnostic(Code.SCALE_PER_TENSOR, f"form {state.form.value}", message, hint, values)]


def _would_help(now: Solution, better: Solution, prices: Prices) -> list[Diagnostic]:
    def is_static(name: str) -> bool:
        row = better.chosen[name].kernel
        return row is not None and row.scheme is Scheme.STATIC

    gained = [name for name in better.chosen if is_static(name)]
    saved = now.cost_us - better.cost_us
    if not gained or (prices.known and saved < _WORTH_TELLING * now.cost_us):
        return []
    values: dict[str, object] = {"nodes": len(gained)}
    message = f"with calibration data {len(gained)} nodes could use static kernels"
    if prices.known:
        message += (
            f", predicted {better.cost_us / 1000:.2f} ms instead of {now.cost_us / 1000:.2f} ms"
        )
        values.update(now_us=round(now.cost_us, 1), static_us=round(better.cost_us, 1))
    hint = "give calibration=...: some dozens of typical feeds"
    return [Diagnostic(Code.CALIBRATION_WOULD_HELP, "calibration", message, hint, values)]
