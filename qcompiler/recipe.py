"""The recipe: what the user wants, validated strictly. Later rules override earlier ones."""

from __future__ import annotations

import json
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import pydantic

from qcompiler.diagnostics import Code, QcError, nearest
from qcompiler.targets.schema import Scheme

__all__ = [
    "RECIPES",
    "AutoRoundOptions",
    "AwqOptions",
    "CalibrationOptions",
    "GptqOptions",
    "QuantizedOptions",
    "Recipe",
    "Rule",
    "SmoothingOptions",
    "TextOptions",
    "VerifyOptions",
    "WeightOptions",
]

SchemeName = Literal["auto", "static", "dynamic", "token", "weight", "float"]
ActivationName = Literal["auto", "int8", "int16", "fp8-e4m3", "fp8-e5m2"]
Method = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
Algorithm = Literal["rtn", "k-quant", "hqq", "gptq", "awq", "teq", "autoround"]
Format = Literal["int", "nf4", "fp4", "fp4-bnb"]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


def _is_group_size(size: int | None) -> int | None:
    if size is None or size == -1 or size >= 1:
        return size
    raise ValueError("wanted at least 1, or -1 for one scale per column")


GroupSize = Annotated[int, pydantic.AfterValidator(_is_group_size)]


class Rule(_Strict):
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
    reason: str = ""


class CalibrationOptions(_Strict):
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


class SmoothingOptions(_Strict):
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


class DoubleQuantOptions(_Strict):
    """How the scales of the weight-only scheme are quantized again.

    Attributes:
        bits: 2 to 8.
        group_size: Scales per scale of scales.
        symmetric: No zero point.
    """

    bits: int = pydantic.Field(8, ge=2, le=8)
    group_size: int = pydantic.Field(256, ge=1)
    symmetric: bool = False


class RtnOptions(_Strict):
    """How ``rtn`` rounds.

    Attributes:
        search: Search clipped ranges, of 4 bits and fewer.
        full_range: Let symmetric groups use their lowest number, which may take a negative scale.
        norm: Exponent of the error that the search minimises.
    """

    search: bool = True
    full_range: bool = True
    norm: float = pydantic.Field(2.0, gt=0.0, le=8.0)


class HqqOptions(_Strict):
    """How ``hqq`` rounds.

    Attributes:
        norm: Exponent of the error; below 2 a few large errors matter less.
        magnitude: Exponent with which an element's size weighs its error; 0 weighs all alike.
        refits: Rounds of rounding and solving, for each scale that is tried.
    """

    norm: float = pydantic.Field(2.0, gt=0.0, le=8.0)
    magnitude: float = pydantic.Field(0.0, ge=0.0, le=8.0)
    refits: int = pydantic.Field(3, ge=0)


class GptqOptions(_Strict):
    """How ``gptq`` rounds.

    Attributes:
        damp: Added to the diagonal of the Hessian, as a share of its mean (``percdamp``).
        block_size: Rows that are brought up to date one by one: a matter of speed alone.
        act_order: Order of the rows: ``none``, ``group`` (GAR: groups by their largest diagonal,
            rows within them), ``full`` (needs ``static_groups`` where there are groups).
        static_groups: Find scales and zero points of all groups before any row moves.
        search: Search clipped ranges, of 4 bits and fewer.
    """

    damp: float = pydantic.Field(0.01, gt=0.0, le=100.0, allow_inf_nan=False)
    block_size: int = pydantic.Field(8, ge=1)
    act_order: Literal["none", "group", "full"] = "group"
    static_groups: bool = False
    search: bool = True


class AwqOptions(_Strict):
    """How ``awq`` scales and clips.

    Attributes:
        grid: Exponents of the scales that are tried: 0, 1 / grid, 2 / grid ... below 1.
        duo_scaling: Divide by the mean size of the weights as well as by that of the activations.
        clip: Search clipped ranges of each group by the error of the outputs.
        insert: Insert a Mul where nothing can absorb the scales.
    """

    grid: int = pydantic.Field(20, ge=1)
    duo_scaling: bool = True
    clip: bool = True
    insert: bool = False


class AutoRoundOptions(_Strict):
    """How ``autoround`` learns; names and defaults are those of the auto-round package.

    Attributes:
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


class TeqOptions(_Strict):
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
    lr: float = pydantic.Field(1e-2, gt=0.0, allow_inf_nan=False)
    warmup: float = pydantic.Field(0.05, ge=0.0, le=1.0)
    insert: bool = False


class TextOptions(_Strict):
    """How calibration text becomes samples.

    Attributes:
        samples: How many.
        length: Tokens of each.
        seed: Of the choice among more.
    """

    samples: int = pydantic.Field(128, ge=1)
    length: int = pydantic.Field(512, ge=2)
    seed: int = 0


class WeightOptions(_Strict):
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

    @pydantic.model_validator(mode="after")
    def _fits_the_format(self) -> WeightOptions:
        if self.format != "int" and self.bits != 4:
            raise ValueError(f"{self.format} has codes of 4 bits: set bits = 4")
        if self.zero_point == "float" and self.symmetric:
            raise ValueError("float zero points need symmetric = false")
        return self


class VerifyOptions(_Strict):
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


class QuantizedOptions(_Strict):
    """What happens to a model that comes quantized.

    Attributes:
        strip: Take Q and DQ out where they stand around operators that the target computes in
            float anyway: faster, nearer to float, and no longer the same numbers.
    """

    strip: bool = False


class Recipe(_Strict):
    """What to do with a model.

    Attributes:
        name: For the report.
        schemes: Schemes the planner may choose from, by cost; empty means float. Of ``token`` and
            ``dynamic``, which differ in precision, a node gets the first that it can have.
        rules: Exceptions, general first; the last match wins. A rule that matches nothing is an
            error.
        activations: Type of static activations. One graph has one: kernels that take another stay
            unused. ``auto`` is the target's first; asking for one that it lacks is an error.
        force: Quantize also where the cost model says that it does not pay.
        embeddings: Store embedding tables in int8.
        calibration: How ranges are found.
        smoothing: Whether outliers of activations move into weights.
        equalize_gates: Balance the channels of activations that a gate multiplies.
        equalize_layers: Balance the weights of consecutive layers channel by channel.
        correct_biases: Take the mean error that rounding makes out of the biases; ``empirical``
            measures it layer by layer on the quantized model instead of computing it from means.
        weights: How weight-only constants are rounded.
        rtn: How ``rtn`` rounds them.
        hqq: How ``hqq`` does.
        gptq: How ``gptq`` does.
        teq: How ``teq`` does.
        autoround: How ``autoround`` does.
        awq: How ``awq`` does.
        text: How calibration text becomes samples.
        bits_budget: Bits that a weight of the weight-only scheme may take on average, scales and
            zero points included: each layer gets the bits of ``bits_choices`` that do least damage
            to the outputs; None gives all ``weights.bits``.
        bits_choices: What a layer may get under ``bits_budget``.
        verify: What is proven after the compile.
        quantized: What happens to a model that comes quantized.
        pipeline: Pipeline text instead of the default one.
        seed: Seed of all randomness (generated inputs).
        max_drop: Return the most damaging nodes to float until the metric (``qcompile(metric=)``;
            by default the cosine of the outputs with float's) has dropped by no more than this.
        drop: Whether ``max_drop`` is a share of float's metric or a difference from it.
        keep_float: Return at least so many of the most damaging nodes to float.
        sensitivity: Measure what each node does to the output, for the report.
        last_logits: A decoder gives the logits of each text's last token only, which is all that a
            loop of generation reads.
        prefill: ``int8`` gives a weight-only language model a second path for prompts, with int8
            products by row; its weights are made of the others when the model is loaded, or stored
            (``int8-stored``): a larger file, which loads at once and in less memory.
    """

    name: str = "custom"
    schemes: tuple[Scheme, ...] = (Scheme.STATIC, Scheme.TOKEN, Scheme.DYNAMIC)
    rules: tuple[Rule, ...] = ()
    activations: ActivationName = "auto"
    force: bool = False
    embeddings: bool = True
    calibration: CalibrationOptions = CalibrationOptions()
    smoothing: SmoothingOptions = SmoothingOptions()
    equalize_gates: bool = True
    equalize_layers: bool = False
    correct_biases: bool | Literal["empirical"] = True
    weights: WeightOptions = WeightOptions()
    rtn: RtnOptions = RtnOptions()
    hqq: HqqOptions = HqqOptions()
    gptq: GptqOptions = GptqOptions()
    teq: TeqOptions = TeqOptions()
    autoround: AutoRoundOptions = AutoRoundOptions()
    awq: AwqOptions = AwqOptions()
    text: TextOptions = TextOptions()
    bits_budget: float | None = pydantic.Field(None, gt=0.0, allow_inf_nan=False)
    bits_choices: tuple[Annotated[int, pydantic.Field(ge=1, le=8)], ...] = (2, 4, 8)
    verify: VerifyOptions = VerifyOptions()
    quantized: QuantizedOptions = QuantizedOptions()
    pipeline: str | None = None
    seed: int = 0
    max_drop: float | None = pydantic.Field(None, ge=0.0, allow_inf_nan=False)
    drop: Literal["relative", "absolute"] = "relative"
    keep_float: int | None = pydantic.Field(None, ge=0)
    sensitivity: bool = False
    last_logits: bool = False
    prefill: Literal["int8", "int8-stored"] | None = None

    @classmethod
    def of(cls, source: str | pathlib.Path | Mapping[str, Any] | Recipe | None) -> Recipe:
        """The recipe that ``source`` means.

        Args:
            source: A :class:`Recipe`, the name of a built-in one, a path to a TOML, YAML or JSON
                file, a mapping, or None for ``auto``. A mapping or file may say
                ``base = "static-int8"`` and override some of its keys.

        Raises:
            QcError: QC402 unknown name or file, QC403 unknown key or bad value.
        """
        if source is None:
            return RECIPES["auto"]
        if isinstance(source, Recipe):
            return source
        if isinstance(source, Mapping):
            return cls._from_mapping(source, "recipe")
        if not isinstance(source, str | os.PathLike):
            raise QcError(
                Code.RECIPE_KEY,
                "recipe",
                f"found a {type(source).__name__}, wanted a name, a path, a mapping or a Recipe",
                nearest("", RECIPES),
            )
        text = os.fspath(source)
        if text in RECIPES:
            return RECIPES[text]
        path = pathlib.Path(text)
        if path.suffix.lower() not in (".toml", ".yaml", ".yml", ".json"):
            raise QcError(Code.UNKNOWN_RECIPE, text, "no such recipe", nearest(text, RECIPES))
        return cls._from_mapping(_read(path), str(path))

    def changed(self, **changes: Any) -> Recipe:
        """This recipe with some keys changed; tables are merged, the name stays.

        Raises:
            QcError: QC403 unknown key or bad value.
        """
        merged = _merge(self.model_dump(mode="json"), changes)
        return self._from_mapping(merged, f"recipe {self.name}") if changes else self

    @classmethod
    def _from_mapping(cls, data: Mapping[str, Any], where: str) -> Recipe:
        data = dict(data)
        base = data.pop("base", None)
        if base is not None:
            if not isinstance(base, str) or base not in RECIPES:
                raise QcError(
                    Code.UNKNOWN_RECIPE, where, f"no recipe {base!r}", nearest(str(base), RECIPES)
                )
            merged = RECIPES[base].model_dump(mode="json")
            data = _merge(merged, {"name": f"{base}+", **data})
        try:
            return cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise _key_error(error, where) from error


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            base[key] = _merge(base[key], value)
        else:
            base[key] = value
    return base


def _read(path: pathlib.Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise QcError(
            Code.UNKNOWN_RECIPE,
            str(path),
            f"cannot be read: {error.strerror or error}",
            "give the path of a TOML, YAML or JSON file, or a name: " + ", ".join(sorted(RECIPES)),
        ) from error
    except UnicodeDecodeError as error:
        raise QcError(
            Code.RECIPE_KEY, str(path), "is no UTF-8 text", "give a TOML, YAML or JSON file"
        ) from error
    try:
        data = _parse(path.suffix.lower(), text)
    except ValueError as error:
        raise QcError(
            Code.RECIPE_KEY,
            str(path),
            f"does not parse: {' '.join(str(error).split())}",
            "docs/recipes.md shows every key",
        ) from error
    if not isinstance(data, Mapping):
        raise QcError(
            Code.RECIPE_KEY,
            str(path),
            f"holds a {type(data).__name__}, wanted a table of keys",
            "docs/recipes.md shows every key",
        )
    return data


def _parse(suffix: str, text: str) -> Any:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        return tomllib.loads(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


_MODELS: dict[str, type[pydantic.BaseModel]] = {
    "rules": Rule,
    "calibration": CalibrationOptions,
    "smoothing": SmoothingOptions,
    "double_quant": DoubleQuantOptions,
    "weights": WeightOptions,
    "rtn": RtnOptions,
    "hqq": HqqOptions,
    "gptq": GptqOptions,
    "teq": TeqOptions,
    "autoround": AutoRoundOptions,
    "awq": AwqOptions,
    "text": TextOptions,
    "verify": VerifyOptions,
    "quantized": QuantizedOptions,
}


def _key_error(error: pydantic.ValidationError, where: str) -> QcError:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    section = next((part for part in first["loc"] if part in _MODELS), None)
    fields = (_MODELS[str(section)] if section else Recipe).model_fields
    if first["type"] == "extra_forbidden":
        return QcError(
            Code.RECIPE_KEY, where, f"unknown key {path!r}", nearest(str(first["loc"][-1]), fields)
        )
    return QcError(Code.RECIPE_KEY, where, f"{path} = {first['input']!r}: {first['msg'].lower()}")


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(name="auto", schemes=(Scheme.STATIC, Scheme.TOKEN, Scheme.DYNAMIC)),
        Recipe(name="static-int8", schemes=(Scheme.STATIC,), activations="int8"),
        # forced, like weight-only: who asks for a type by name wants it, on a CPU as a reference
        Recipe(name="static-fp8", schemes=(Scheme.STATIC,), activations="fp8-e4m3", force=True),
        Recipe(
            name="static-fp8-e5m2", schemes=(Scheme.STATIC,), activations="fp8-e5m2", force=True
        ),
        Recipe(name="static-a16w8", schemes=(Scheme.STATIC,), activations="int16", force=True),
        Recipe(name="dynamic-int8", schemes=(Scheme.TOKEN, Scheme.DYNAMIC)),
        # forced: who asks for weight-only by name wants a small model, at any batch size
        Recipe(
            name="weight-int8",
            schemes=(Scheme.WEIGHT,),
            weights=WeightOptions(bits=8),
            force=True,
        ),
        Recipe(
            name="weight-int4",
            schemes=(Scheme.WEIGHT,),
            force=True,
            weights=WeightOptions(bits=4, group_size=32),
        ),
        *(
            Recipe(
                name=f"w4-{algorithm}",
                schemes=(Scheme.WEIGHT,),
                force=True,
                weights=WeightOptions(
                    bits=4,
                    group_size=64,
                    symmetric=algorithm == "rtn",
                    algorithm=algorithm,
                    zero_point="float" if algorithm == "hqq" else "int",
                ),
            )
            for algorithm in get_args(Algorithm)
        ),
        *(
            Recipe(
                name=f"w4-autoround-{effort}",
                schemes=(Scheme.WEIGHT,),
                force=True,
                weights=WeightOptions(
                    bits=4, group_size=64, symmetric=False, algorithm="autoround"
                ),
                text=TextOptions(samples=samples),
                autoround=options,
            )
            for effort, samples, options in (
                ("light", 128, AutoRoundOptions(iters=50, lr=5e-3)),
                ("best", 512, AutoRoundOptions(iters=1000)),
            )
        ),
        Recipe(name="float", schemes=(), embeddings=False),
    )
}
