"""Peak memory of compiling a model that is larger than it: ``python benchmarks/large_model.py``.

Writes a Llama-shaped folder of random float16 weights (3 B parameters by default, 6 GB; kept in the
cache), then compiles it in a process of its own for each recipe. What rounds by data gets windows
of 512 random tokens; ``--layers 2,3 --recipes w4-gptq`` tells what one more block costs.
``w4-rtn:4.5`` chooses bits of 3 to 6 by layer under that budget.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from qcompiler_models import perplexity
from qcompiler_models.assets import cache_root
from suite.jobs import JobError, run_job, write_feeds

_HIDDEN, _INNER, _HEADS, _KV_HEADS, _WORDS = 3072, 8192, 24, 8, 32000
_LENGTH = 512  # tokens of a window
_NEED_DATA = ("w4-gptq", "w4-awq", "w4-teq", "w4-autoround")
_SECONDS = 7200


def main() -> None:
    options = _options()
    if options.place is not None:
        options.place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        for layers in options.layers:
            folder = _model(layers)
            size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            print(f"{layers} layers, {size / 1e9:.2f} GB of float16", flush=True)
            for name in options.recipes:
                data = _data(layers, options.samples, pathlib.Path(place) / "data")
                print(f"{name}: {_compiled(name, folder, data, pathlib.Path(place))}", flush=True)


def _compiled(name: str, folder: pathlib.Path, data: pathlib.Path, place: pathlib.Path) -> str:
    """What it took, in words."""
    made = place / name.replace(":", "-")
    base, _, budget = name.partition(":")
    recipe = {"base": base, "verify": {"enabled": False}}
    if budget:
        recipe |= {"bits_budget": float(budget), "bits_choices": [3, 4, 5, 6]}
    try:
        done = run_job(pathlib.Path(sys.executable), "compile_ours.py", {
            "model": str(folder), "output": str(made), "form": None,
            "recipe": recipe,
            "calibration": str(data) if budget or base in _NEED_DATA else None,
        }, _SECONDS)  # fmt: skip
    except JobError as error:
        return f"failed: {error}"
    written = sum(path.stat().st_size for path in made.iterdir())
    shutil.rmtree(made)
    return (
        f"{done['seconds']:.0f} s, processor {done['cpu_seconds']:.0f} s, peak"
        f" {done['peak_mb'] / 1e3:.2f} GB, folder {written / 1e9:.2f} GB"
    )


def _data(layers: int, samples: int, folder: pathlib.Path) -> pathlib.Path:
    """Windows of random tokens as feeds."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, _WORDS, (samples, 1, _LENGTH))
    width = _HIDDEN // _HEADS
    return write_feeds([perplexity.feed(row, layers, _KV_HEADS, width) for row in rows], folder)


def _model(layers: int) -> pathlib.Path:
    """The folder, written one layer at a time."""
    from safetensors.numpy import save_file

    folder = cache_root() / "folders" / f"random-llama-{layers}"
    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    index: dict[str, str] = {}

    def write(file: str, shapes: dict[str, tuple[int, ...]]) -> None:
        tensors = {
            name: (
                np.ones(shape, np.float16)
                if len(shape) == 1
                else (rng.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
            )
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
        index.update(dict.fromkeys(tensors, file))

    width = _HIDDEN // _HEADS * _KV_HEADS
    for layer in range(layers):
        head = f"model.layers.{layer}."
        write(f"layer-{layer:02}.safetensors", {
            head + "self_attn.q_proj.weight": (_HIDDEN, _HIDDEN),
            head + "self_attn.k_proj.weight": (width, _HIDDEN),
            head + "self_attn.v_proj.weight": (width, _HIDDEN),
            head + "self_attn.o_proj.weight": (_HIDDEN, _HIDDEN),
            head + "mlp.gate_proj.weight": (_INNER, _HIDDEN),
            head + "mlp.up_proj.weight": (_INNER, _HIDDEN),
            head + "mlp.down_proj.weight": (_HIDDEN, _INNER),
            head + "input_layernorm.weight": (_HIDDEN,),
            head + "post_attention_layernorm.weight": (_HIDDEN,),
        })  # fmt: skip
    write("ends.safetensors", {
        "model.embed_tokens.weight": (_WORDS, _HIDDEN),
        "model.norm.weight": (_HIDDEN,),
        "lm_head.weight": (_WORDS, _HIDDEN),
    })  # fmt: skip
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _HIDDEN,
        "intermediate_size": _INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS,
        "vocab_size": _WORDS,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--layers",
        type=lambda text: [int(word) for word in text.split(",")],
        default=[28],
        help="28 are 3 B parameters; several with commas between",
    )
    parser.add_argument("--samples", type=int, default=64, help="calibration windows")
    parser.add_argument(
        "--recipes", type=lambda text: text.split(","), default=["w4-rtn", "w4-hqq"]
    )
    parser.add_argument("--place", type=pathlib.Path, default=None, help="for what is compiled")
    return parser.parse_args()


if __name__ == "__main__":
    main()
