"""Keys of a recipe that the user gave and that change nothing in this compile: told, not silent.

What a key needs to have an effect is held against the plan that was made, so that a table counts as
used which the algorithm of any rule reads. A key that switches something off is fulfilled where
there is nothing to switch off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from qcompiler.diagnostics import Code, Diagnostic
from qcompiler.key_facts import KeyFacts
from qcompiler.targets.schema import Form, Scheme

__all__ = ["unused_keys"]

# fmt: off
_STORED = (
    "weights.bits", "weights.group_size", "weights.symmetric", "weights.algorithm",
    "weights.format", "weights.zero_point", "weights.double_quant",
)
_ALGORITHMS = ("rtn.", "hqq.", "gptq.", "awq.", "teq.", "autoround.", "distill.")
_RANGES = (
    "calibration.method", "calibration.percentile", "calibration.momentum", "calibration.bins",
)
_PLANNED = (
    *_STORED, "activations", "bits_budget", "megabytes_budget", "bits_choices",
    "weights.granularity",
)
_OF_FLOAT_MODELS = (
    *_PLANNED, *_ALGORITHMS, *_RANGES, "embeddings", "weights.rounding", "smoothing.", "auto",
    "equalize_gates", "equalize_layers", "absorb_biases", "correct_biases", "verify.layers",
)
_BY_PASS = {
    "absorb_biases": "absorb-biases", "autoround.": "learn-by-block",
    "awq.": "scale-salient-channels", "bits_budget": "allot-bits",
    "correct_biases": "correct-biases", "distill.": "distill-scales",
    "equalize_layers": "equalize-layers",
    "gptq.": "round-in-stages", "kv_cache": "quantize-cache", "megabytes_budget": "allot-bits",
    "prefill": "add-prefill", "smoothing.": "smooth-activations", "teq.": "learn-factors",
}
# fmt: on


@dataclasses.dataclass(frozen=True, slots=True)
class _Need:
    """What some keys need to have an effect.

    Attributes:
        keys: Names; one with a dot at its end is a whole table.
        met: Whether it is there.
        why: What is missing, behind "has no effect: ".
        hint: What to do, but for leaving the key out.
    """

    keys: tuple[str, ...]
    met: Callable[[KeyFacts], bool]
    why: str
    hint: str = ""

    def concerns(self, key: str) -> bool:
        """Whether this is one of its keys."""
        return any(key == item or (item[-1] == "." and key.startswith(item)) for item in self.keys)


def _pass(key: str, name: str) -> _Need:
    why = f"the recipe's pipeline is without {name}"
    return _Need((key,), lambda c: name in c.passes, why, "add the pass to the pipeline")


# fmt: off
_NEEDS: tuple[_Need, ...] = (  # of a key's unmet needs the first is told
    # the model
    _Need(("encoder",), lambda c: c.opened.encoder is not None,
        "the model is no encoder-decoder that is compiled in two parts",
        "put its keys into the recipe itself"),
    _Need(("quantized.",), lambda c: c.opened.quantized, "the model does not come quantized"),
    _Need(_OF_FLOAT_MODELS, lambda c: not c.opened.quantized or c.recipe.pipeline is not None,
        "the model came quantized, and what is quantized stays as it is",
        "compile the float model, or take the quantization out by the recipe 'float'"),
    _Need(("example_inputs",), lambda c: c.opened.kind not in ("onnx", "exported-program"),
        "the model is a graph already, and not exported from torch",
        "give feeds as calibration data"),
    _Need(("schemes",), lambda c: not c.opened.quantized or not c.recipe.schemes
        or Scheme.WEIGHT in c.recipe.schemes,  # which stores tables that are still float
        "the model came quantized: what is quantized stays so in any scheme",
        "take the quantization out by the recipe 'float'"),
    *(_pass(key, name) for key, name in _BY_PASS.items()),
    # the data
    _Need(("text.",), lambda c: c.takes_text,
        "only a model of input_ids alone is calibrated on text"),
    _Need(("text.length", "text.seed"), lambda c: c.reads_text or c.writes_text,
        "no text is calibrated on", "give text as calibration data"),
    _Need(("text.samples",), lambda c: c.reads_text, "the calibration data are no text",
        "give text as calibration data; of the model's own text it is text.own_samples"),
    _Need(("text.own_samples",), lambda c: c.writes_text or c.recipe.text.own_samples == 0,
        "the model wrote no text: there are calibration data, or nothing needs them"),
    _Need(("calibration.max_samples", "verify.feeds", "auto"),
        lambda c: c.state.feeds is not None,
        "there are no calibration data", "give calibration data"),
    _Need(("calibration.max_samples",), lambda c: not c.reads_text,
        "the calibration data are text", "set text.samples"),
    # the plan
    _Need(("bits_budget", "megabytes_budget"), lambda c: c.given is None,
        "the plan that was given decides how many bits weights have",
        "compile without the plan, or edit the plan"),
    _Need((*_PLANNED, "schemes"), lambda c: c.given is None or c.given.recipe == c.recipe.name,
        "the plan that was given decides, and another recipe made it",
        "compile without the plan, or edit the plan"),
    _Need(("force",), lambda c: bool(c.recipe.schemes or c.recipe.rules),
        "the recipe has no scheme to force"),
    _Need(("keep_float", "max_drop"), lambda c: bool(c.recipe.schemes or c.recipe.rules),
        "the recipe quantizes nothing that could return to float"),
    _Need(("sensitivity",), lambda c: bool(c.schemes) or c.recipe.max_drop is not None,
        "nothing is quantized"),
    _Need(("activations",), lambda c: Scheme.STATIC in c.schemes, "no kernel is static",
        "add 'static' to schemes, and give calibration data"),
    _Need(_RANGES, lambda c: c.calibrates, "no activation gets its range from calibration data",
        "add 'static' to schemes, and give calibration data"),
    _Need(("smoothing.",), lambda c: c.smooths,
        "no linear layer makes integers of its activations, or there are no calibration data"),
    _Need(("weights.granularity",), lambda c: c.quantizes_activations,
        "no layer quantizes its activations as well",
        "weights.group_size and weights.algorithm are for weights alone"),
    _Need(("weights.rounding",), lambda c: c.quantizes_activations
        or (c.recipe.weights.rounding == "adaround" and bool(c.weights)),
        "no layer quantizes its activations as well",
        "weights.algorithm is for weights alone, and adaround for either"),
    _Need(("correct_biases",), lambda c: c.calibrates and c.convolves,
        "no convolution has static scales"),
    # weights in few bits
    _Need(("bits_choices",), lambda c: c.budgets, "no budget is set that would choose among them",
        "set bits_budget or megabytes_budget; weights.bits is for all layers alike"),
    _Need((*_STORED, *_ALGORITHMS), lambda c: bool(c.weights),
        "no weight is stored in few bits alone (scheme 'weight')",
        "weight-only recipes, as 'weight-int4', store those of linear layers so"),
    _Need(("weights.bits",), lambda c: not c.budgets,
        "under a budget layers get one of bits_choices", "put it into bits_choices"),
    _Need(("weights.symmetric", "weights.zero_point"),
        lambda c: any(not spec.codebook for _, _, spec in c.weights), "codes have no zero point",
        "set weights.format = 'int'"),
    _Need(("weights.accuracy_level",), lambda c: c.four_bits,
        "there is no product of 4 bits in form ort"),
    # their algorithms
    _Need(("rtn.",), lambda c: c.rounds_to_nearest, "no weight is rounded by rtn",
        "set weights.algorithm = 'rtn'"),
    _Need(("hqq.",), lambda c: "hqq" in c.algorithms, "no weight is rounded by hqq",
        "set weights.algorithm = 'hqq'"),
    _Need(("gptq.",), lambda c: c.compensates, "no weight is rounded by gptq",
        "set weights.algorithm = 'gptq', or awq.rounding = 'gptq'"),
    _Need(("awq.",), lambda c: c.scales_channels, "no weight is rounded by awq",
        "set weights.algorithm = 'awq'"),
    _Need(("teq.",), lambda c: "teq" in c.algorithms, "no weight is rounded by teq",
        "set weights.algorithm = 'teq'"),
    _Need(("distill.batch_size", "distill.lr"), lambda c: c.recipe.distill.steps > 0,
        "there are no steps to learn in", "set distill.steps"),
    _Need(("autoround.",), lambda c: "autoround" in c.algorithms,
        "no weight is rounded by autoround", "set weights.algorithm = 'autoround'"),
    _Need(("rtn.search", "rtn.norm", "gptq.search"), lambda c: c.few_bits,
        "ranges are searched for 4 bits and fewer"),
    _Need(("awq.clip", "awq.rounding"), lambda c: "awq" in c.algorithms,
        "AutoRound takes only grid, duo_scaling and insert of awq"),
    _Need(("rtn.full_range",), lambda c: c.state.form is Form.ORT and c.symmetric,
        "it is for symmetric weights in form ort"),
    _Need(("work",), lambda c: c.keeps_work,
        "no weight is rounded by an algorithm that takes long"),
    # other keys
    _Need(("rtn.norm",), lambda c: c.recipe.rtn.search, "rtn.search is off"),
    _Need(("awq.clip",), lambda c: c.recipe.awq.rounding == "nearest",
        "awq.rounding is not 'nearest'"),
    _Need(("autoround.minmax_lr",), lambda c: c.recipe.autoround.enable_minmax_tuning,
        "autoround.enable_minmax_tuning is off"),
    _Need(("smoothing.criterion", "smoothing.grid"), lambda c: c.recipe.smoothing.alpha == "auto",
        "smoothing.alpha is not 'auto'"),
    _Need(("calibration.percentile",), lambda c: c.recipe.calibration.method == "percentile",
        "it is of another method", "set calibration.method = 'percentile'"),
    _Need(("calibration.momentum",), lambda c: c.recipe.calibration.method == "moving-average",
        "it is of another method", "set calibration.method = 'moving-average'"),
    _Need(("calibration.bins",),
        lambda c: c.recipe.calibration.method in ("auto", "entropy"),
        "calibration.method compares no histograms"),
    _Need(("drop",), lambda c: c.recipe.max_drop is not None, "max_drop is not set"),
    _Need(("verify.min_cosine", "verify.wrong_cosine", "verify.max_slowdown"),
        lambda c: c.recipe.verify.enabled, "verify.enabled is off"),
    _Need(("verify.feeds",), lambda c: c.recipe.verify.enabled or c.recipe.verify.layers,
        "verify.enabled is off"),
    _Need(("verify.max_slowdown",), lambda c: c.guards,
        "what is forced, follows a given plan, or has no guard stays however slow it is"),
)
# fmt: on


def unused_keys(facts: KeyFacts) -> tuple[Diagnostic, ...]:
    """What the user said, in the recipe or beside it, that changes nothing in a compile (QC412)."""
    found: dict[_Need, list[str]] = {}
    for key in facts.keys:
        unmet = (need for need in _NEEDS if need.concerns(key) and not need.met(facts))
        need = next(unmet, None)
        if need is not None and not _switches_off(facts, key):
            found.setdefault(need, []).append(key)
    said = [(", ".join(keys), need.why, need.hint) for need, keys in found.items()]
    if facts.opened.quantized and facts.recipe.pipeline is None:
        why = "the model came quantized, and rules only keep nodes of it as they came"
        for index, rule in enumerate(facts.recipe.rules):
            if rule.scheme != "float":
                said.append((f"rules[{index}]", why, "set scheme = 'float' in the rule"))
    return tuple(
        Diagnostic(Code.KEY_UNUSED, where, f"has no effect: {why}", hint)
        for where, why, hint in said
    )


def _switches_off(facts: KeyFacts, key: str) -> bool:
    off = {
        "correct_biases": not facts.recipe.correct_biases,
        "equalize_gates": True,
        "embeddings": True,
        "smoothing.alpha": facts.recipe.smoothing.alpha is None,
        "smoothing.insert": True,
    }
    return off.get(key, False)
