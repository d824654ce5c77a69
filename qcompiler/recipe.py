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
from qcompiler.recipe_keys import NAMES_ELSEWHERE, keep_said
from qcompiler.recipe_options import (
    DATA_DRIVEN,
    ActivationName,
    Algorithm,
    AutoOptions,
    AutoRoundOptions,
    AwqOptions,
    CalibrationOptions,
    DistillOptions,
    DoubleQuantOptions,
    GptqOptions,
    HqqOptions,
    QuantizedOptions,
    RtnOptions,
    Rule,
    SmoothingOptions,
    Strict,
    TeqOptions,
    TextOptions,
    VerifyOptions,
    WeightOptions,
)
from qcompiler.targets.schema import Scheme

__all__ = [
    "RECIPES",
    "AutoOptions",
    "AutoRoundOptions",
    "AwqOptions",
    "CalibrationOptions",
    "DistillOptions",
    "GptqOptions",
    "QuantizedOptions",
    "Recipe",
    "Rule",
    "SmoothingOptions",
    "TextOptions",
    "VerifyOptions",
    "WeightOptions",
]


class Recipe(Strict):
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
        auto: Try the steps for accuracy one by one on some of the calibration data and take those
            that help (:mod:`qcompiler.tuning`); None takes the others' defaults.
        equalize_gates: Balance the channels of activations that a gate multiplies.
        equalize_layers: Balance the weights of consecutive layers channel by channel.
        absorb_biases: Lower channels that are always on and add what they lack behind the next
            layer; ``deviation`` also clips what lies three deviations below the mean.
        correct_biases: Take the mean error that rounding makes out of the biases; ``empirical``
            measures it layer by layer on the quantized model instead of computing it from means.
        weights: How weight-only constants are rounded.
        rtn: How ``rtn`` rounds them.
        hqq: How ``hqq`` does.
        gptq: How ``gptq`` does.
        teq: How ``teq`` does.
        autoround: How ``autoround`` does.
        awq: How ``awq`` does.
        distill: How the scales of all these weights learn from the float model's outputs.
        text: How calibration text becomes samples.
        bits_budget: Bits that a weight of the weight-only scheme may take on average, scales and
            zero points included: each layer gets the bits of ``bits_choices`` that do least damage
            to the outputs; None gives all ``weights.bits``.
        megabytes_budget: The same as megabytes (10^6 bytes) of all these weights together; only
            one of the two.
        bits_choices: What a layer may get under a budget.
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
        kv_cache: Store keys and values of earlier tokens in 8 bits, with a calibrated scale for
            each channel of each head or for all keys, and all values, of a layer; None is float.
        encoder: Recipe of an encoder-decoder's encoder, by name or as a table; None is this one
            without what speaks of the decoder: rules, ``text``, ``last_logits``, ``prefill``,
            ``kv_cache``.
    """

    name: str = "custom"
    schemes: tuple[Scheme, ...] = (Scheme.STATIC, Scheme.TOKEN, Scheme.DYNAMIC)
    rules: tuple[Rule, ...] = ()
    activations: ActivationName = "auto"
    force: bool = False
    embeddings: bool = True
    calibration: CalibrationOptions = CalibrationOptions()
    smoothing: SmoothingOptions = SmoothingOptions()
    auto: AutoOptions | None = None
    equalize_gates: bool = True
    equalize_layers: bool = False
    absorb_biases: bool | Literal["deviation"] = False
    correct_biases: bool | Literal["empirical"] = True
    weights: WeightOptions = WeightOptions()
    rtn: RtnOptions = RtnOptions()
    hqq: HqqOptions = HqqOptions()
    gptq: GptqOptions = GptqOptions()
    teq: TeqOptions = TeqOptions()
    autoround: AutoRoundOptions = AutoRoundOptions()
    awq: AwqOptions = AwqOptions()
    distill: DistillOptions = DistillOptions()
    text: TextOptions = TextOptions()
    bits_budget: float | None = pydantic.Field(None, gt=0.0, allow_inf_nan=False)
    megabytes_budget: float | None = pydantic.Field(None, gt=0.0, allow_inf_nan=False)
    bits_choices: tuple[Annotated[int, pydantic.Field(ge=1, le=8)], ...] = pydantic.Field(
        (2, 4, 8), min_length=1
    )
    verify: VerifyOptions = VerifyOptions()
    quantized: QuantizedOptions = QuantizedOptions()
    pipeline: str | None = None
    seed: int = pydantic.Field(0, ge=0, lt=2**32)
    max_drop: float | None = pydantic.Field(None, ge=0.0, allow_inf_nan=False)
    drop: Literal["relative", "absolute"] = "relative"
    keep_float: int | None = pydantic.Field(None, ge=0)
    sensitivity: bool = False
    last_logits: bool = False
    prefill: Literal["int8", "int8-stored"] | None = None
    kv_cache: Literal["int8-channel", "int8-tensor"] | None = None
    encoder: Recipe | None = None

    @pydantic.field_validator("encoder", mode="before")
    @classmethod
    def _read_encoder(cls, given: Any) -> Any:
        return cls.of(given) if isinstance(given, str | Mapping) else given

    @pydantic.model_validator(mode="after")
    def _has_one_budget(self) -> Recipe:
        if self.bits_budget is not None and self.megabytes_budget is not None:
            raise ValueError("give bits_budget or megabytes_budget, not both")
        return self

    @property
    def rounds_by_data(self) -> bool:
        """Whether calibration data decide how weights that are stored in few bits are rounded."""
        asked = {self.weights.algorithm, *(rule.algorithm for rule in self.rules)}
        budget = self.bits_budget is not None or self.megabytes_budget is not None
        weights = Scheme.WEIGHT in self.schemes or any(r.scheme == "weight" for r in self.rules)
        learns = budget or self.distill.steps > 0
        return weights and (learns or not DATA_DRIVEN.isdisjoint(asked))

    @property
    def of_encoder(self) -> Recipe:
        """The recipe of an encoder-decoder's encoder."""
        if self.encoder is not None:
            return self.encoder
        return self.model_copy(
            update={
                "rules": (),
                "text": TextOptions(),
                "last_logits": False,
                "prefill": None,
                "kv_cache": None,
            }
        )

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
        if not changes:
            return self
        merged = _merge(self.model_dump(mode="json"), changes)
        made = self._from_mapping(merged, f"recipe {self.name}")
        keep_said(made, _merge(self.model_dump(exclude_unset=True), changes))
        return made

    @classmethod
    def _from_mapping(cls, given: Mapping[str, Any], where: str) -> Recipe:
        data = dict(given)
        base = data.pop("base", None)
        if base is not None:
            if not isinstance(base, str) or base not in RECIPES:
                raise QcError(
                    Code.UNKNOWN_RECIPE, where, f"no recipe {base!r}", nearest(str(base), RECIPES)
                )
            merged = RECIPES[base].model_dump(mode="json")
            data = _merge(merged, {"name": f"{base}+", **data})
        try:
            made = cls.model_validate(data)
        except pydantic.ValidationError as error:
            raise _key_error(error, where) from error
        keep_said(made, given)
        return made


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
    from qcompiler.strict_yaml import load_yaml

    return load_yaml(text)


_MODELS: dict[str, type[pydantic.BaseModel]] = {
    "rules": Rule,
    "auto": AutoOptions,
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
    "distill": DistillOptions,
    "text": TextOptions,
    "verify": VerifyOptions,
    "quantized": QuantizedOptions,
}


def _keys_of(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The part of an error's place that the user wrote: without types that a value may have."""
    if len(loc) < 2 or loc[0] in _MODELS or loc[0] == "rules":
        return loc
    return loc[:1]


def _key_error(error: pydantic.ValidationError, where: str) -> QcError:
    first = error.errors()[0]
    keys = _keys_of(first["loc"])
    path = ".".join(map(str, keys))
    if first["type"] != "extra_forbidden":
        given, said = first["input"], first["msg"].removeprefix("Value error, ").lower()
        if keys and keys[-1] in _MODELS and not isinstance(given, Mapping):
            fields = ", ".join(_MODELS[str(keys[-1])].model_fields)
            said = f"wanted a table of the keys {fields}"
        elif keys != first["loc"]:  # one of several types: each of them says what it wants
            others = [item["msg"] for item in error.errors() if _keys_of(item["loc"]) == keys]
            said = ", or ".join(others).lower()
        # keys of a table that do not go together are named by the message, without all others
        found = path if isinstance(given, Mapping) else f"{path} = {given!r}"
        return QcError(Code.RECIPE_KEY, where, f"{found}: {said}" if found else said)
    *above, key = map(str, first["loc"])
    table = next((part for part in reversed(above) if part in _MODELS), "")
    models: dict[str, type[pydantic.BaseModel]] = {"": Recipe, **_MODELS}
    elsewhere = [name for name, model in models.items() if key in model.model_fields]
    if elsewhere:
        hint = f"{key!r} is a key of " + " or ".join(n or "the recipe itself" for n in elsewhere)
    elif key in NAMES_ELSEWHERE:
        hint = f"what other tools call {key!r} is {NAMES_ELSEWHERE[key]} here"
    else:
        hint = nearest(key, models[table].model_fields)
    return QcError(Code.RECIPE_KEY, where, f"unknown key {path!r}", hint)


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="auto",
            schemes=(Scheme.STATIC, Scheme.TOKEN, Scheme.DYNAMIC),
            auto=AutoOptions(),
        ),
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
        Recipe(
            name="w4-distilled",
            schemes=(Scheme.WEIGHT,),
            force=True,
            weights=WeightOptions(bits=4, group_size=64, symmetric=False, algorithm="gptq"),
            text=TextOptions(samples=64),
            distill=DistillOptions(steps=64),
        ),
        Recipe(name="float", schemes=(), embeddings=False),
    )
}
for _recipe in RECIPES.values():
    keep_said(_recipe, {})
