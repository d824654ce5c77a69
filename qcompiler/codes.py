"""The codes of everything that the compiler tells: a table, by family.

Codes are never reused. What to do about each is in :mod:`qcompiler.remedies`;
``docs/diagnostics.md`` is generated from both.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["Code", "Severity"]


class Severity(enum.IntEnum):
    """How much a diagnostic matters."""

    INFO = 0
    WARNING = 1
    ERROR = 2


INFO: Final = Severity.INFO
WARNING: Final = Severity.WARNING
ERROR: Final = Severity.ERROR


class Code(enum.Enum):
    """All codes; a member's value is ``(id, severity, explanation)``."""

    # fmt: off
    # QC1xx: kept in float
    NO_KERNEL = "QC101", INFO, "The target has no low-precision kernel for this operator."
    NOT_CONSTANT = ("QC102", INFO,
        "The kernel wants a constant weight and this operand is computed at run time.")
    UNKNOWN_SHAPE = "QC103", WARNING, "A shape needed for the decision is unknown."
    GROUP_SIZE = ("QC104", WARNING,
        "The reduced dimension does not suit the group size of the scheme.")
    DOES_NOT_PAY = ("QC105", INFO,
        "By the target's measured cost the quantized form is not faster here.")
    KEPT_BY_RULE = "QC106", INFO, "A rule of the recipe keeps this node in float."
    NOT_SELECTED = "QC107", INFO, "The recipe does not quantize this kind of operator."
    NO_CALIBRATION = ("QC108", INFO,
        "A static kernel exists but there is no calibration data for its ranges.")
    WRONG_DTYPE = "QC109", INFO, "The operator does not compute on floating-point data."
    CONDITION = "QC110", INFO, "A kernel exists, but this node does not meet one of its conditions."
    TRAP = "QC111", WARNING, "The runtime is known to fail or to be slow on this form."
    IN_SUBGRAPH = "QC112", INFO, "Nodes inside If and Loop bodies stay in float."
    CUSTOM_OP = "QC113", INFO, "The operator's domain is not known to the compiler."
    ALREADY_QUANTIZED = "QC114", INFO, "The node is part of an already quantized region."
    FLOAT_NEIGHBOURS = ("QC115", INFO,
        "Alone it would pay, but not with the conversions its neighbours would need.")
    SHAPE_COMPUTATION = "QC116", INFO, "The node computes shapes or indices, not data."
    SHARED_WEIGHT = "QC117", INFO, "A node that shares the weight needs another form, or a copy."
    DATA_MOVEMENT = "QC118", INFO, "The operator only moves data and its neighbours stay in float."
    MEASURED_SLOWER = ("QC119", WARNING,
        "The quantized model was measured to be slower than float, so float was kept.")
    FOR_SIZE = "QC120", INFO, "Quantized to make the model smaller, not faster."
    FORCED = ("QC121", INFO,
        "Quantized because the recipe forces it, although the cost model says that it is slower.")
    REFERENCE_ONLY = ("QC122", WARNING,
        "The runtime has no kernel for this precision: the artifact is a numerical reference.")
    SENSITIVE = ("QC123", INFO,
        "Returned to float because quantizing it does much damage to the model's output.")
    SCALE_PER_TENSOR = ("QC124", INFO,
        "Activations share one scale where the recipe would rather have one per token.")
    COARSE_WEIGHT = ("QC125", INFO,
        "One scale for the weight would change most of its output channels by over a tenth.")
    UNPACKED_WEIGHTS = ("QC126", INFO,
        "Weights are filed in fewer bits than the kernel reads, and unpacked when the model loads.")
    FLOAT_WEIGHTS = ("QC127", WARNING,
        "The runtime has no kernel for this format of weights: they become floats when it loads.")
    INPUT_LAYER = ("QC128", INFO,
        "A convolution at the input of a transformer: its rounding would be in all that follows.")
    FLOAT_ZERO_POINTS = ("QC129", INFO,
        "Zero points of weights are floats: each layer adds a small float product for them.")
    ROUNDED_ACTIVATIONS = ("QC131", INFO,
        "Products that came with weights of few bits and float activations round these now.")
    NOTHING_QUANTIZED = "QC130", WARNING, "The whole model stays in float under this recipe."

    # QC2xx: calibration
    EMPTY_CALIBRATION = "QC201", ERROR, "The calibration source gave no sample."
    FEED_NAME = "QC202", ERROR, "A feed names an input wrongly, or lacks one."
    FEED_SHAPE = "QC203", ERROR, "A feed's array has a shape the input does not take."
    FEED_DTYPE = "QC204", ERROR, "A feed's array has a type the input does not take."
    NOT_FINITE = "QC205", ERROR, "NaN or infinity where finite numbers are needed."
    CALIBRATION_WOULD_HELP = ("QC206", INFO,
        "Calibration data would allow static kernels, which are faster.")
    DEAD_TENSOR = "QC207", WARNING, "A tensor was constant zero on all calibration data."
    CALIBRATION_SOURCE = "QC208", ERROR, "The calibration source cannot be read."
    FEW_SAMPLES = "QC209", WARNING, "There are fewer samples than the method wants."
    SUMMARY_MISMATCH = ("QC210", ERROR,
        "A saved calibration summary belongs to another model or plan.")
    INFINITE_IGNORED = ("QC211", INFO,
        "Infinite values (as attention masks have) were left out of a range.")
    NO_TOKENIZER = ("QC212", ERROR,
        "Calibration text needs a tokenizer, and the model came without one.")
    UNCOVERED = ("QC213", INFO,
        "Calibration data do not tell how far other data reach; ranges may clip those.")
    OWN_TEXT = "QC214", INFO, "There were no calibration data: the model wrote texts itself."
    TEXT_CUT = "QC215", INFO, "Texts are longer than a sample: their ends are not read."

    # QC3xx: algorithms
    NOT_FINITE_WEIGHT = "QC301", ERROR, "A weight holds NaN or infinity."
    NOT_LIFTABLE = ("QC302", ERROR,
        "An algorithm needs gradients through an operator that has no differentiable form.")
    SMOOTHED = ("QC310", INFO,
        "Outliers of an activation were moved into the weights of the layers that read it.")
    NOT_SMOOTHED = ("QC311", INFO,
        "An activation was not smoothed: nothing can absorb the factors, or it would not help.")
    EQUALIZED = ("QC312", INFO,
        "The weights of two consecutive layers were balanced channel by channel.")
    NOT_EQUALIZED = ("QC313", INFO,
        "Two consecutive layers were not balanced: a cap between them binds, or nothing is to win.")
    ROUNDING_LEARNED = "QC315", INFO, "The rounding of a layer's weight was learned."
    ROUNDING_KEPT = ("QC316", INFO,
        "The rounding of a layer's weight was not learned, or learning did not help.")
    FEW_FOR_LEARNING = "QC317", WARNING, "There is less calibration data than learning wants."
    BITS_ALLOTTED = "QC318", INFO, "Weights got bits of their own under the recipe's budget."
    ROUNDED_IN_STAGES = ("QC319", INFO,
        "Weights were rounded by what reaches their layers, behind layers rounded before.")
    SENSITIVITY_UNKNOWN = ("QC320", WARNING,
        "What each node does to the output could not be measured.")
    DAMPING_RAISED = ("QC321", WARNING,
        "The Hessian of a layer's input is nearly singular: it took more damping than asked for.")
    DEAD_CHANNELS = "QC322", WARNING, "Input channels of a layer were zero on all calibration data."
    SALIENT_SCALED = ("QC323", INFO,
        "Input channels that matter were scaled up in the weights that read them.")
    SALIENT_KEPT = ("QC324", INFO,
        "Input channels were not scaled: nothing can absorb the scales, or it would not help.")
    STEPS_CUT = ("QC325", INFO,
        "Steps for accuracy were not tried, because the budget of time was used up.")
    STEPS_UNTRIED = ("QC326", INFO,
        "No step for accuracy was tried: plan or data do not allow it, or nothing is quantized.")
    FP8_SCALES = ("QC327", INFO,
        "Weights of few bits have scales under which they become 8-bit floats without error.")
    BIAS_KEPT = ("QC328", INFO,
        "Biases were not absorbed by the next layer: it pads, or no channel is always on.")
    BIAS_ABSORBED = ("QC329", INFO,
        "Channels that are always on were lowered, and the next layer's bias makes up for it.")
    BIAS_ESTIMATED = ("QC330", INFO,
        "A layer's mean error was not measured: its bias is corrected by the means of its input.")
    SCALES_LEARNED = ("QC331", INFO,
        "Scales of rounded weights learned from the float model's outputs.")
    SCALES_KEPT = ("QC332", INFO,
        "Scales of rounded weights did not learn from the float model's outputs.")

    # QC4xx: recipe and usage
    UNKNOWN_TARGET = "QC401", ERROR, "No target has this name."
    UNKNOWN_RECIPE = "QC402", ERROR, "No recipe has this name."
    RECIPE_KEY = "QC403", ERROR, "A recipe has a key or value that is not allowed."
    RULE_MATCHES_NOTHING = "QC404", ERROR, "A rule of the recipe matches no node."
    TARGET_CANNOT = "QC405", ERROR, "The target cannot do what the recipe demands."
    UNKNOWN_PASS = "QC406", ERROR, "No pass has this name, or it has no such option."
    PASS_ORDER = "QC407", ERROR, "A pass needs a fact that no earlier pass gives."
    BAD_PLAN = "QC408", ERROR, "A given plan does not fit the model."
    TARGET_FILE = "QC409", ERROR, "A target file cannot be read as a target."
    NEEDS_CALIBRATION = "QC410", ERROR, "The recipe needs calibration data."
    USAGE = "QC411", ERROR, "An argument is not usable."
    KEY_UNUSED = "QC412", WARNING, "A key of the recipe has no effect on this model."

    # QC5xx: lowering
    NO_LOWERING = "QC501", ERROR, "A planned kernel could not be lowered to its form."
    OPSET_KEPT = "QC502", WARNING, "The model's opset could not be raised."
    OPSET_RAISED = "QC503", INFO, "The model's opset was raised for the target's operators."
    NO_PREFILL = "QC504", WARNING, "There is no second path for prompts."
    PREFILL_MEMORY = "QC505", INFO, "What the second path for prompts takes."
    INT8_CACHE = "QC506", INFO, "Keys and values of earlier tokens are kept in 8 bits."
    TILED_ATTENTION = "QC507", INFO, "Attention over long sequences runs in tiles."

    # QC6xx: verification
    KERNEL_NOT_SEEN = ("QC601", ERROR,
        "A planned integer kernel is not in the runtime's optimized graph.")
    LEFTOVER_QDQ = ("QC602", WARNING,
        "A QuantizeLinear or DequantizeLinear runs around a float operator.")
    WRONG_RESULT = "QC603", ERROR, "The artifact's outputs are not those of the float model."
    LOW_FIDELITY = "QC604", WARNING, "The artifact's outputs are far from the float model's."
    NOT_VERIFIED = "QC605", WARNING, "The artifact could not be verified on this host."
    DOES_NOT_LOAD = "QC606", ERROR, "The runtime refuses the artifact."
    FLOAT_MODEL_FAILS = "QC607", ERROR, "The runtime cannot run the float model."
    METRIC_FAILED = "QC608", ERROR, "The metric raised, or gave no finite number."
    DROP_MISSED = "QC609", ERROR, "No artifact was found that holds max_drop."
    DROP_HELD = "QC610", INFO, "An artifact holds max_drop."
    NOT_MONOTONE = ("QC611", INFO,
        "Returning more nodes to float made the metric worse, which the search does not expect.")

    # QC7xx: files and models at the door
    NO_FILE = "QC701", ERROR, "There is no such file or folder."
    NOT_ONNX = "QC702", ERROR, "The file is not a readable ONNX model."
    EXTERNAL_DATA = "QC703", ERROR, "External data is missing, short, or outside the folder."
    UNKNOWN_OPSET = "QC704", ERROR, "The model's opset is not supported."
    NO_EXPORT = "QC705", ERROR, "The torch model does not export to ONNX."
    NOT_WRITABLE = "QC706", ERROR, "The output folder cannot be written."
    UNSUPPORTED_INPUT = "QC707", ERROR, "This kind of object is not a model we can read."
    NEEDS_EXAMPLE_INPUTS = "QC708", ERROR, "A torch model needs example inputs."
    NOT_ARTIFACT = "QC709", ERROR, "The folder is not an artifact, or is damaged."
    INVALID_GRAPH = "QC710", ERROR, "The model's graph is not legal ONNX."
    DEFAULT_INPUT = "QC711", INFO, "An input with a default value became a constant."
    FIXED_SHAPE = ("QC712", WARNING,
        "The torch model exports only for the shapes of the example inputs.")
    CAST_TO_FLOAT = ("QC713", INFO,
        "A bfloat16 model was converted to float32, which the runtime's kernels need.")
    NOT_EXPORTABLE = "QC714", ERROR, "A checkpoint format cannot hold the artifact."
    CHECKPOINT_DIFFERS = ("QC715", INFO,
        "An exported checkpoint is not the artifact in every number.")
    TOKENIZER_MISSING = ("QC716", WARNING,
        "A language model came without a tokenizer: its artifact cannot read a prompt.")
    CLASS_ASSUMED = ("QC717", INFO,
        "A transformers folder names no class that is known; one was taken.")
    BUFFERS_CHANGE = ("QC718", WARNING,
        "The torch module changes its buffers when it runs; an artifact has no state.")

    # QC9xx: our bug
    PASS_CONTRACT = "QC901", ERROR, "A pass broke its contract. Please report it."
    INTERNAL = "QC902", ERROR, "The compiler failed. Please report it."
    # fmt: on

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
