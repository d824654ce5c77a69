"""The tables of a recipe, validated strictly: one class for each, and the rules."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

__all__ = [
    "DATA_DRIVEN",
    "ActivationName",
    "Algorithm",
    "AutoOptions",
    "AutoRoundOptions",
    "AwqOptions",
    "CalibrationOptions",
    "DistillOptions",
    "DoubleQuantOptions",
    "GptqOptions",
    "HqqOptions",
    "QuantizedOptions",
    "RtnOptions",
    "Rule",
    "SmoothingOptions",
    "Strict",
    "TeqOptions",
    "TextOptions",
    "VerifyOptions",
    "WeightOptions",
]

SchemeName = Literal["auto", "static", "dynamic", "token", "weight", "float"]
ActivationName = Literal["auto", "int8", "int16", "fp8-e4m3", "fp8-e5m2"]
Method = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
Algorithm = Literal["rtn", "k-quant", "hqq", "gptq", "awq", "teq", "autoround"]
DATA_DRIVEN = frozenset({"gptq", "awq", "teq", "autoround"})
Format = Literal["int", "nf4", "fp4", "fp4-bnb"]
_NO_FLOAT_ZERO = "{} finds no float zero points: set zero_point = 'int', or algorithm = 'hqq'"


class Strict(pydantic.BaseModel):
    """Frozen; a key that it does not have is an error."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


def _is_group_size(size: int | None) -> int | None:
    if size is None or size == -1 or size >= 1:
        return size
    raise ValueError("wanted at least 1, or -1 for one scale per column")


GroupSize = Annotated[int, pydantic.AfterValidator(_is_group_size)]


class Rule(Strict):
    """An exception for some nodes. All the conditions given must hold; the last match wins.

    Attributes:
        match: Glob on the node's name, the user's node names, or the module path; ``re:...`` for a
            regular expression.
        op: Operator type, as ``MatMul`` or ``com.microsoft:Gelu``.
        scheme: What to do with the matching nodes.
        kernel: Id of a kernel row of the target to use.
        force: Do it even where the cost model says that it does not pay.
        bits: Weight bits of the weight-only scheme.
        group_size: Elements per scale of the weight-only scheme; -1 is a whole column.
        symmetric: Whether weight-only groups are symmetric.
        algorithm: How weights of the weight-only scheme are rounded.
        format: What weights of the weight-only scheme are stored as.
        zero_point: Of asymmetric integers of the weight-only scheme: ``int`` or ``float``.
        reason: Shown in the report.
    """

    match: str = "*"
    op: str | None = None
    scheme: SchemeName = "auto"
    kernel: str | None = None
    force: bool = False
    bits: int | None = pydantic.Field(None, ge=1, le=8)
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    algorithm: Algorithm | None = None
    format: Format | None = None
    zero_point: Literal["int", "float"] | None = None
    reason: str = ""

    @pydantic.model_validator(mode="after")
    def _zero_point_fits(self) -> Rule:
        if self.zero_point == "float" and self.symmetric:
            raise ValueError("float zero points need symmetric = false")
        if self.zero_point == "float" and self.algorithm in DATA_DRIVEN:
            raise ValueError(_NO_FLOAT_ZERO.format(self.algorithm))
        return self


class CalibrationOptions(Strict):
    """How ranges are found.

    Attributes:
        method: ``auto`` chooses per tensor what minimises the error.
        percentile: For ``percentile``: share of values inside the range, in percent.
        momentum: For ``moving-average``: weight of the newest batch.
        bins: Bins of a histogram.
        max_samples: Stop after this many feeds; None takes all.
        mask: Name of the input that is 0 where the data is padding; None finds
            ``attention_mask`` by itself, "" never masks.
    """

    method: Method = "auto"
    percentile: float = pydantic.Field(99.999, gt=50.0, le=100.0)
    momentum: float = pydantic.Field(0.1, gt=0.0, le=1.0)
    bins: int = pydantic.Field(2048, ge=128)
    max_samples: int | None = pydantic.Field(None, ge=1)
    mask: str | None = None


class AutoOptions(Strict):
    """Which steps for accuracy are taken: those that measurably help.

    Attributes:
        seconds: What trying them may take, on this machine.
    """

    seconds: float = pydantic.Field(60.0, gt=0.0, allow_inf_nan=False)


class SmoothingOptions(Strict):
    """Whether outliers of activations move into the weights that read them (SmoothQuant).

    Attributes:
        alpha: How much of the difficulty moves, 0 to 1; ``auto`` finds it for each group of layers
            that read one value, where normalizations feed linear layers; None is off.
        criterion: ``layer`` finds one alpha per group, ``block`` one per block of the model.
        grid: What ``auto`` tries, besides not smoothing at all.
        insert: Insert a Mul where nothing can absorb the factors and the cost model allows it.
    """

    alpha: float | Literal["auto"] | None = "auto"
    criterion: Literal["layer", "block"] = "layer"
    grid: tuple[float, ...] = tuple(step / 10 for step in range(11))
    insert: bool = True

    @pydantic.field_validator("alpha", mode="before")
    @classmethod
    def _alpha_in_bounds(cls, alpha: object) -> object:
        if alpha is None or alpha == "auto" or _is_share(alpha):
            return alpha
        raise ValueError("wanted a number from 0 to 1, 'auto', or null for off")

    @pydantic.field_validator("grid", mode="after")
    @classmethod
    def _grid_in_bounds(cls, grid: tuple[float, ...]) -> tuple[float, ...]:
        if not grid or not all(_is_share(alpha) for alpha in grid):
            raise ValueError("wanted numbers from 0 to 1")
        return grid


def _is_share(number: object) -> bool:
    """Whether it is a number from 0 to 1 (NaN and booleans are not)."""
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return 0.0 <= number <= 1.0


class DoubleQuantOptions(Strict):
    """How the scales of the weight-only scheme are quantized again.

    Attributes:
        bits: 2 to 8.
        group_size: Scales per scale of scales.
        symmetric: No zero point.
    """

    bits: int = pydantic.Field(8, ge=2, le=8)
    group_size: int = pydantic.Field(256, ge=1)
    symmetric: bool = False


class RtnOptions(Strict):
    """How ``rtn`` rounds.

    Attributes:
        search: Search clipped ranges, of 4 bits and fewer.
        full_range: Let symmetric groups use their lowest number, which may take a negative scale.
        norm: Exponent of the error that the search minimises.
    """

    search: bool = True
    full_range: bool = True
    norm: float = pydantic.Field(2.0, gt=0.0, le=8.0)


class HqqOptions(Strict):
    """How ``hqq`` rounds.

    Attributes:
        norm: Exponent of the error; below 2 a few large errors matter less. None is 1 with float
            zero points and 2 with integer ones.
        magnitude: Exponent with which an element's size weighs its error; 0 weighs all alike.
        refits: Rounds of rounding and solving, for each scale that is tried.
    """

    norm: float | None = pydantic.Field(None, gt=0.0, le=8.0)
    magnitude: float = pydantic.Field(0.0, ge=0.0, le=8.0)
    refits: int = pydantic.Field(3, ge=0)


class GptqOptions(Strict):
    """How ``gptq`` rounds.

    Attributes:
        damp: Added to the diagonal of the Hessian, as a share of its mean (``percdamp``).
        block_size: Rows that are brought up to date one by one: a matter of speed alone.
        act_order: Order of the rows: ``none``, ``group`` (GAR: groups by their largest diagonal,
            rows within them), ``full`` (needs ``static_groups`` where there are groups).
        static_groups: Find scales and zero points of all groups before any row moves.
        search: Search clipped ranges, of 4 bits and fewer.
        fp8_scales: Let every scale of a column be one factor times a power of two: 4-bit weights
            then become 8-bit floats (E4M3) without error, on hardware that multiplies those.
    """

    damp: float = pydantic.Field(0.01, gt=0.0, le=100.0, allow_inf_nan=False)
    block_size: int = pydantic.Field(8, ge=1)
    act_order: Literal["none", "group", "full"] = "group"
    static_groups: bool = False
    search: bool = True
    fp8_scales: bool = False


class AwqOptions(Strict):
    """How ``awq`` scales and clips.

    Attributes:
        grid: Exponents of the scales that are tried: 0, 1 / grid, 2 / grid ... below 1.
        duo_scaling: Divide by the mean size of the weights as well as by that of the activations.
        clip: Search clipped ranges of each group by the error of the outputs.
        insert: Insert a Mul where nothing can absorb the scales.
        rounding: ``nearest``, under the clipped ranges, or ``gptq``, with that table's options.
    """

    grid: int = pydantic.Field(20, ge=1)
    duo_scaling: bool = True
    clip: bool = True
    insert: bool = False
    rounding: Literal["nearest", "gptq"] = "nearest"


class AutoRoundOptions(Strict):
    """How ``autoround`` learns; names and defaults are those of the auto-round package.

    Attributes:
        scale_channels: Scale salient channels first, as ``awq`` does and by its options ``grid``,
            ``duo_scaling`` and ``insert``; auto-round has no such thing.
        iters: Steps for each block.
        batch_size: Samples of one step.
        gradient_accumulate_steps: Batches whose gradients are added up before a step.
        lr: Step of the rounding at the start; None is ``1 / iters``.
        minmax_lr: Step of the ranges; None is ``lr``.
        enable_minmax_tuning: Learn the ranges as well.
        enable_quanted_input: Learn on what the rounded blocks before give, not on float inputs.
        nblocks: Consecutive blocks that learn together.
        dynamic_max_gap: Stop after so many steps without a new best; -1 never does.
        not_use_best_mse: Keep the last step's weights rather than those of the lowest loss.
    """

    scale_channels: bool = True
    iters: int = pydantic.Field(200, ge=0)
    batch_size: int = pydantic.Field(8, ge=1)
    gradient_accumulate_steps: int = pydantic.Field(1, ge=1)
    lr: float | None = pydantic.Field(None, ge=0.0, allow_inf_nan=False)
    minmax_lr: float | None = pydantic.Field(None, ge=0.0, allow_inf_nan=False)
    enable_minmax_tuning: bool = True
    enable_quanted_input: bool = True
    nblocks: int = pydantic.Field(1, ge=1)
    dynamic_max_gap: int = pydantic.Field(-1, ge=-1)
    not_use_best_mse: bool = False


class TeqOptions(Strict):
    """How ``teq`` learns.

    Attributes:
        iters: Steps for each block.
        batch_size: Samples of one step.
        lr: Step of Adam on the logarithms of the factors.
        warmup: Share of the steps in which the step grows from 0.
        insert: Insert a Mul where nothing can absorb the factors.
    """

    iters: int = pydantic.Field(100, ge=0)
    batch_size: int = pydantic.Field(4, ge=1)
    lr: float = pydantic.Field(3e-2, gt=0.0, allow_inf_nan=False)
    warmup: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    insert: bool = False


class DistillOptions(Strict):
    """How scales of weight-only layers learn from the float model's outputs.

    Attributes:
        steps: Steps over the whole model; 0 leaves the scales as the algorithm made them.
        batch_size: Samples of one step.
        lr: Step of Adam on the logarithms of the scales at its largest.
    """

    steps: int = pydantic.Field(0, ge=0)
    batch_size: int = pydantic.Field(4, ge=1)
    lr: float = pydantic.Field(2e-3, gt=0.0, allow_inf_nan=False)


class TextOptions(Strict):
    """How calibration text becomes samples.

    Attributes:
        samples: How many.
        length: Tokens of each.
        seed: Of the choice among more, and of texts of the model's own.
        own_samples: Texts that a decoder writes itself where an algorithm needs data and there are
            none; 0 is never.
    """

    samples: int = pydantic.Field(128, ge=1)
    length: int = pydantic.Field(512, ge=2)
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    own_samples: int = pydantic.Field(16, ge=0)


class WeightOptions(Strict):
    """How weights are rounded.

    Attributes:
        bits: 1 to 8, in the weight-only scheme.
        group_size: Elements per scale along the in-features, in the weight-only scheme; -1 is a
            whole column.
        symmetric: No zero point, in the weight-only scheme.
        algorithm: How the weight-only scheme rounds: ``rtn`` to nearest, ``k-quant`` by weighted
            least squares, ``hqq`` by rounding and solving in turns; by calibration data ``gptq``,
            which lets the weights of a layer make up for one another, ``awq``, which scales the
            channels that
            matter up, ``teq``, which learns such scales, and ``autoround``, which learns the
            rounding of whole blocks.
        format: What the weight-only scheme stores: ``int``, or codes of 4 bits: ``nf4``, ``fp4``
            (e2m1), ``fp4-bnb`` (that of bitsandbytes).
        zero_point: Of asymmetric integers of the weight-only scheme: ``int``, or ``float``, with
            ``hqq`` and ``k-quant``: nearer to the weights, and a float product more for each layer.
        double_quant: Quantize the scales of the weight-only scheme again; None leaves them float.
        accuracy_level: Arithmetic of ONNX Runtime's products of 4-bit weights, by its own numbers:
            4 rounds activations to int8, block by block; 1 leaves them float, and is slower.
        granularity: ``tensor`` gives a weight one scale where activations are quantized as well,
            ``channel`` one per output channel; ``auto`` is the kernel's.
        rounding: ``nearest``; ``moment`` of convolutions so that the errors of their outputs are
            small, by the second moment of their inputs; ``adaround`` learns it (minutes).
    """

    bits: int = pydantic.Field(8, ge=1, le=8)
    group_size: GroupSize = 128
    symmetric: bool = True
    algorithm: Algorithm = "rtn"
    format: Format = "int"
    granularity: Literal["auto", "channel", "tensor"] = "auto"
    rounding: Literal["nearest", "moment", "adaround"] = "moment"
    zero_point: Literal["int", "float"] = "int"
    double_quant: DoubleQuantOptions | None = None
    accuracy_level: Literal[1, 4] = 4

    @pydantic.model_validator(mode="after")
    def _fits_the_format(self) -> WeightOptions:
        if self.format != "int" and self.bits != 4:
            raise ValueError(f"{self.format} has codes of 4 bits: set bits = 4")
        if self.zero_point == "float" and self.symmetric:
            raise ValueError("float zero points need symmetric = false")
        if self.zero_point == "float" and self.algorithm in DATA_DRIVEN:
            raise ValueError(_NO_FLOAT_ZERO.format(self.algorithm))
        if self.algorithm == "autoround" and (self.format != "int" or self.double_quant):
            what = "quantized scales" if self.format == "int" else self.format
            raise ValueError(f"autoround learns integers with float scales, not {what}")
        return self


class VerifyOptions(Strict):
    """What is proven after the compile.

    Attributes:
        enabled: Run the artifact and compare with float.
        min_cosine: Below this cosine of an output a diagnostic is given.
        wrong_cosine: Below this cosine the result is an error.
        guard: Measure artifact and float; when the artifact is slower, return the float form.
        max_slowdown: Tolerated slowdown of the guard (0.02: 2 %).
        feeds: At most this many feeds are compared.
        layers: Compare node by node as well; takes as long as some runs without optimization.
    """

    enabled: bool = True
    min_cosine: float = 0.98
    wrong_cosine: float = 0.2
    guard: bool = True
    max_slowdown: float = pydantic.Field(0.02, ge=0.0)
    feeds: int = pydantic.Field(4, ge=1)
    layers: bool = False


class QuantizedOptions(Strict):
    """What happens to a model that comes quantized.

    Attributes:
        strip: Take Q and DQ out where they stand around operators that the target computes in
            float anyway: faster, nearer to float, and no longer the same numbers.
    """

    strip: bool = False
