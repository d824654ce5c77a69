"""What the compiler tells its user: coded diagnostics, and the one exception that carries them.

Every decision that a user might ask "why?" about is a :class:`Diagnostic`. Codes are never reused;
``docs/diagnostics.md`` is generated from this module.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Code", "Diagnostic", "QcError", "Severity", "nearest"]


class Severity(enum.IntEnum):
    """How much a diagnostic matters."""

    INFO = 0
    WARNING = 1
    ERROR = 2


class Code(enum.Enum):
    """All codes, by family; a member's value is ``(id, severity, explanation)``.

    Families: QC1xx kept in float, QC2xx calibration, QC3xx algorithms, QC4xx recipe and usage,
    QC5xx lowering, QC6xx verification, QC7xx files and models at the door, QC9xx our own bug.
    """

    # --- QC1xx: kept in float --------------------------------------------------------------
    NO_KERNEL = (
        "QC101",
        Severity.INFO,
        "The target has no low-precision kernel for this operator.",
    )
    NOT_CONSTANT = (
        "QC102",
        Severity.INFO,
        "The kernel wants a constant weight and this operand is computed at run time.",
    )
    UNKNOWN_SHAPE = ("QC103", Severity.WARNING, "A shape needed for the decision is unknown.")
    GROUP_SIZE = (
        "QC104",
        Severity.WARNING,
        "The reduced dimension does not suit the group size of the scheme.",
    )
    DOES_NOT_PAY = (
        "QC105",
        Severity.INFO,
        "By the target's measured cost the quantized form is not faster here.",
    )
    KEPT_BY_RULE = ("QC106", Severity.INFO, "A rule of the recipe keeps this node in float.")
    NOT_SELECTED = ("QC107", Severity.INFO, "The recipe does not quantize this kind of operator.")
    NO_CALIBRATION = (
        "QC108",
        Severity.INFO,
        "A static kernel exists but there is no calibration data for its ranges.",
    )
    WRONG_DTYPE = ("QC109", Severity.INFO, "The operator does not compute on floating-point data.")
    CONDITION = (
        "QC110",
        Severity.INFO,
        "A kernel exists, but this node does not meet one of its conditions.",
    )
    TRAP = ("QC111", Severity.WARNING, "The runtime is known to fail or to be slow on this form.")
    IN_SUBGRAPH = ("QC112", Severity.INFO, "Nodes inside If and Loop bodies stay in float.")
    CUSTOM_OP = ("QC113", Severity.INFO, "The operator's domain is not known to the compiler.")
    ALREADY_QUANTIZED = ("QC114", Severity.INFO, "The node is part of an already quantized region.")
    FLOAT_NEIGHBOURS = (
        "QC115",
        Severity.INFO,
        "Alone it would pay, but not with the conversions its neighbours would need.",
    )
    SHAPE_COMPUTATION = ("QC116", Severity.INFO, "The node computes shapes or indices, not data.")
    SHARED_WEIGHT = (
        "QC117",
        Severity.INFO,
        "The weight is shared with a node that needs another form of it.",
    )
    DATA_MOVEMENT = (
        "QC118",
        Severity.INFO,
        "The operator only moves data and its neighbours stay in float.",
    )
    MEASURED_SLOWER = (
        "QC119",
        Severity.WARNING,
        "The quantized model was measured to be slower than float, so float was kept.",
    )
    FOR_SIZE = ("QC120", Severity.INFO, "Quantized to make the model smaller, not faster.")
    FORCED = (
        "QC121",
        Severity.INFO,
        "Quantized because the recipe forces it, although the cost model says that it is slower.",
    )
    REFERENCE_ONLY = (
        "QC122",
        Severity.WARNING,
        "The runtime has no kernel for this precision: the artifact is a numerical reference.",
    )
    FLOAT_WEIGHTS = (
        "QC127",
        Severity.WARNING,
        "The runtime has no kernel for this format of weights: they become floats when it loads.",
    )
    FLOAT_ZERO_POINTS = (
        "QC129",
        Severity.INFO,
        "Zero points of weights are floats: each layer adds a small float product for them.",
    )
    UNPACKED_WEIGHTS = (
        "QC126",
        Severity.INFO,
        "Weights are filed in fewer bits than the kernel reads, and unpacked when the model loads.",
    )
    SCALE_PER_TENSOR = (
        "QC124",
        Severity.INFO,
        "Activations share one scale where the recipe would rather have one per token.",
    )
    SENSITIVE = (
        "QC123",
        Severity.INFO,
        "Returned to float because quantizing it does much damage to the model's output.",
    )
    COARSE_WEIGHT = (
        "QC125",
        Severity.INFO,
        "One scale for the weight would change most of its output channels by over a tenth.",
    )
    INPUT_LAYER = (
        "QC128",
        Severity.INFO,
        "A convolution at the input of a transformer: its rounding would be in all that follows.",
    )
    # --- QC2xx: calibration ----------------------------------------------------------------
    EMPTY_CALIBRATION = ("QC201", Severity.ERROR, "The calibration source gave no sample.")
    FEED_NAME = ("QC202", Severity.ERROR, "A feed names an input wrongly, or lacks one.")
    FEED_SHAPE = ("QC203", Severity.ERROR, "A feed's array has a shape the input does not take.")
    FEED_DTYPE = ("QC204", Severity.ERROR, "A feed's array has a type the input does not take.")
    NOT_FINITE = ("QC205", Severity.ERROR, "NaN or infinity where finite numbers are needed.")
    CALIBRATION_WOULD_HELP = (
        "QC206",
        Severity.INFO,
        "Calibration data would allow static kernels, which are faster.",
    )
    DEAD_TENSOR = ("QC207", Severity.WARNING, "A tensor was constant zero on all calibration data.")
    CALIBRATION_SOURCE = ("QC208", Severity.ERROR, "The calibration source cannot be read.")
    FEW_SAMPLES = ("QC209", Severity.WARNING, "There are fewer samples than the method wants.")
    SUMMARY_MISMATCH = (
        "QC210",
        Severity.ERROR,
        "A saved calibration summary belongs to another model or plan.",
    )
    INFINITE_IGNORED = (
        "QC211",
        Severity.INFO,
        "Infinite values (as attention masks have) were left out of a range.",
    )
    NO_TOKENIZER = (
        "QC212",
        Severity.ERROR,
        "Calibration text needs a tokenizer, and the model came without one.",
    )
    UNCOVERED = (
        "QC213",
        Severity.INFO,
        "Calibration data do not tell how far other data reach; ranges may clip those.",
    )
    OWN_TEXT = (
        "QC214",
        Severity.INFO,
        "There were no calibration data: the model wrote texts itself.",
    )
    # --- QC3xx: algorithms -----------------------------------------------------------------
    NOT_FINITE_WEIGHT = ("QC301", Severity.ERROR, "A weight holds NaN or infinity.")
    NOT_LIFTABLE = (
        "QC302",
        Severity.ERROR,
        "An algorithm needs gradients through an operator that has no differentiable form.",
    )
    SMOOTHED = (
        "QC310",
        Severity.INFO,
        "Outliers of an activation were moved into the weights of the layers that read it.",
    )
    NOT_SMOOTHED = (
        "QC311",
        Severity.INFO,
        "An activation was not smoothed: nothing can absorb the factors, or it would not help.",
    )
    EQUALIZED = (
        "QC312",
        Severity.INFO,
        "The weights of two consecutive layers were balanced channel by channel.",
    )
    NOT_EQUALIZED = (
        "QC313",
        Severity.INFO,
        "Two consecutive layers were not balanced: a cap between them binds, or nothing is to win.",
    )
    ROUNDING_LEARNED = (
        "QC315",
        Severity.INFO,
        "The rounding of a layer's weight was learned.",
    )
    ROUNDING_KEPT = (
        "QC316",
        Severity.INFO,
        "The rounding of a layer's weight was not learned, or learning did not help.",
    )
    FEW_FOR_LEARNING = (
        "QC317",
        Severity.WARNING,
        "There is less calibration data than learning wants.",
    )
    ROUNDED_IN_STAGES = (
        "QC319",
        Severity.INFO,
        "Weights were rounded by what reaches their layers, behind layers rounded before.",
    )
    DAMPING_RAISED = (
        "QC321",
        Severity.WARNING,
        "The Hessian of a layer's input is nearly singular: it took more damping than asked for.",
    )
    DEAD_CHANNELS = (
        "QC322",
        Severity.WARNING,
        "Input channels of a layer were zero on all calibration data.",
    )
    SALIENT_SCALED = (
        "QC323",
        Severity.INFO,
        "Input channels that matter were scaled up in the weights that read them.",
    )
    SALIENT_KEPT = (
        "QC324",
        Severity.INFO,
        "Input channels were not scaled: nothing can absorb the scales, or it would not help.",
    )
    SENSITIVITY_UNKNOWN = (
        "QC320",
        Severity.WARNING,
        "What each node does to the output could not be measured.",
    )
    BITS_ALLOTTED = (
        "QC318",
        Severity.INFO,
        "Weights got bits of their own under the recipe's budget.",
    )
    STEPS_CUT = (
        "QC325",
        Severity.INFO,
        "Steps for accuracy were not tried, because the budget of time was used up.",
    )
    STEPS_UNTRIED = (
        "QC326",
        Severity.INFO,
        "No step for accuracy was tried: the data do not allow for it, or nothing is quantized.",
    )
    FP8_SCALES = (
        "QC327",
        Severity.INFO,
        "Weights of few bits have scales under which they become 8-bit floats without error.",
    )
    BIAS_ABSORBED = (
        "QC329",
        Severity.INFO,
        "Channels that are always on were lowered, and the next layer's bias makes up for it.",
    )
    BIAS_KEPT = (
        "QC328",
        Severity.INFO,
        "Biases were not absorbed by the next layer: it pads, or no channel is always on.",
    )
    # --- QC4xx: recipe and usage -----------------------------------------------------------
    UNKNOWN_TARGET = ("QC401", Severity.ERROR, "No target has this name.")
    UNKNOWN_RECIPE = ("QC402", Severity.ERROR, "No recipe has this name.")
    RECIPE_KEY = ("QC403", Severity.ERROR, "A recipe has a key or value that is not allowed.")
    RULE_MATCHES_NOTHING = ("QC404", Severity.ERROR, "A rule of the recipe matches no node.")
    TARGET_CANNOT = ("QC405", Severity.ERROR, "The target cannot do what the recipe demands.")
    UNKNOWN_PASS = ("QC406", Severity.ERROR, "No pass has this name, or it has no such option.")
    PASS_ORDER = ("QC407", Severity.ERROR, "A pass needs a fact that no earlier pass gives.")
    BAD_PLAN = ("QC408", Severity.ERROR, "A given plan does not fit the model.")
    TARGET_FILE = ("QC409", Severity.ERROR, "A target file cannot be read as a target.")
    NEEDS_CALIBRATION = ("QC410", Severity.ERROR, "The recipe needs calibration data.")
    USAGE = ("QC411", Severity.ERROR, "An argument is not usable.")
    # --- QC5xx: lowering -------------------------------------------------------------------
    NO_LOWERING = ("QC501", Severity.ERROR, "A planned kernel could not be lowered to its form.")
    OPSET_KEPT = ("QC502", Severity.WARNING, "The model's opset could not be raised.")
    OPSET_RAISED = (
        "QC503",
        Severity.INFO,
        "The model's opset was raised for the target's operators.",
    )
    NO_PREFILL = ("QC504", Severity.WARNING, "There is no second path for prompts.")
    PREFILL_MEMORY = ("QC505", Severity.INFO, "What the second path for prompts takes.")
    INT8_CACHE = ("QC506", Severity.INFO, "Keys and values of earlier tokens are kept in 8 bits.")
    # --- QC6xx: verification ---------------------------------------------------------------
    KERNEL_NOT_SEEN = (
        "QC601",
        Severity.ERROR,
        "A planned integer kernel is not in the runtime's optimized graph.",
    )
    LEFTOVER_QDQ = (
        "QC602",
        Severity.WARNING,
        "A QuantizeLinear or DequantizeLinear runs around a float operator.",
    )
    WRONG_RESULT = (
        "QC603",
        Severity.ERROR,
        "The artifact's outputs are not those of the float model.",
    )
    LOW_FIDELITY = (
        "QC604",
        Severity.WARNING,
        "The artifact's outputs are far from the float model's.",
    )
    NOT_VERIFIED = ("QC605", Severity.WARNING, "The artifact could not be verified on this host.")
    DOES_NOT_LOAD = ("QC606", Severity.ERROR, "The runtime refuses the artifact.")
    FLOAT_MODEL_FAILS = ("QC607", Severity.ERROR, "The runtime cannot run the float model.")
    METRIC_FAILED = ("QC608", Severity.ERROR, "The metric raised, or gave no finite number.")
    DROP_MISSED = ("QC609", Severity.ERROR, "No artifact was found that holds max_drop.")
    DROP_HELD = ("QC610", Severity.INFO, "An artifact holds max_drop.")
    NOT_MONOTONE = (
        "QC611",
        Severity.INFO,
        "Returning more nodes to float made the metric worse, which the search does not expect.",
    )
    # --- QC7xx: files and models at the door -----------------------------------------------
    NO_FILE = ("QC701", Severity.ERROR, "There is no such file or folder.")
    NOT_ONNX = ("QC702", Severity.ERROR, "The file is not a readable ONNX model.")
    EXTERNAL_DATA = (
        "QC703",
        Severity.ERROR,
        "External data is missing, short, or outside the folder.",
    )
    UNKNOWN_OPSET = ("QC704", Severity.ERROR, "The model's opset is not supported.")
    NO_EXPORT = ("QC705", Severity.ERROR, "The torch model does not export to ONNX.")
    NOT_WRITABLE = ("QC706", Severity.ERROR, "The output folder cannot be written.")
    UNSUPPORTED_INPUT = ("QC707", Severity.ERROR, "This kind of object is not a model we can read.")
    NEEDS_EXAMPLE_INPUTS = ("QC708", Severity.ERROR, "A torch model needs example inputs.")
    NOT_ARTIFACT = ("QC709", Severity.ERROR, "The folder is not an artifact, or is damaged.")
    INVALID_GRAPH = ("QC710", Severity.ERROR, "The model's graph is not legal ONNX.")
    DEFAULT_INPUT = ("QC711", Severity.INFO, "An input with a default value became a constant.")
    FIXED_SHAPE = (
        "QC712",
        Severity.WARNING,
        "The torch model exports only for the shapes of the example inputs.",
    )
    CAST_TO_FLOAT = (
        "QC713",
        Severity.INFO,
        "A bfloat16 model was converted to float32, which the runtime's kernels need.",
    )
    NOT_EXPORTABLE = ("QC714", Severity.ERROR, "A checkpoint format cannot hold the artifact.")
    CHECKPOINT_DIFFERS = (
        "QC715",
        Severity.INFO,
        "An exported checkpoint is not the artifact in every number.",
    )
    TOKENIZER_MISSING = (
        "QC716",
        Severity.WARNING,
        "A language model came without a tokenizer: its artifact cannot read a prompt.",
    )
    # --- QC9xx: our bug --------------------------------------------------------------------
    PASS_CONTRACT = ("QC901", Severity.ERROR, "A pass broke its contract. Please report it.")
    INTERNAL = ("QC902", Severity.ERROR, "The compiler failed. Please report it.")

    @property
    def id(self) -> str:
        """The stable code, as ``QC101``."""
        return self.value[0]

    @property
    def severity(self) -> Severity:
        """How much it matters, unless a :class:`Diagnostic` says otherwise."""
        return self.value[1]

    @property
    def explanation(self) -> str:
        """One sentence for the documentation."""
        return self.value[2]

    @classmethod
    def from_id(cls, text: str) -> Code:
        """The member whose id is ``text``; ``KeyError`` when there is none."""
        for code in cls:
            if code.id == text:
                return code
        raise KeyError(text)


@dataclasses.dataclass(frozen=True, slots=True)
class Diagnostic:
    """One thing the user may want to know, with its code and its numbers.

    Attributes:
        code: What kind of thing it is.
        where: The user's name for the place: node and module path, file, key of a recipe.
        message: What is so, with the numbers: lower case, no full stop.
        hint: What the user can do about it.
        values: The same numbers, for machines (JSON-able).
    """

    code: Code
    where: str
    message: str
    hint: str = ""
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        """The severity of the code."""
        return self.code.severity

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f" (hint: {self.hint})" if self.hint else ""
        return f"{self.code.id} {place}{self.message}{hint}"

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; :meth:`from_dict` reads it back."""
        return {
            "code": self.code.id,
            "name": self.code.name.lower().replace("_", "-"),
            "severity": self.severity.name.lower(),
            "where": self.where,
            "message": self.message,
            "hint": self.hint,
            "values": dict(self.values),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Diagnostic:
        """Read what :meth:`to_dict` wrote."""
        return cls(
            Code.from_id(data["code"]),
            data["where"],
            data["message"],
            data.get("hint", ""),
            dict(data.get("values", {})),
        )


class QcError(Exception):
    """What a user can cause and mend. Holds one :class:`Diagnostic`."""

    def __init__(self, code: Code, where: str, message: str, hint: str = "", **values: Any) -> None:
        self.diagnostic = Diagnostic(code, where, message, hint, values)
        super().__init__(str(self.diagnostic))

    @property
    def code(self) -> Code:
        """The diagnostic's code."""
        return self.diagnostic.code


def nearest(name: str, known: Iterable[str], limit: int = 3) -> str:
    """A hint naming the known words nearest to ``name``, or all of them when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(word) for word in close) + "?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}" if known else "there is none"
