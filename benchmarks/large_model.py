"""Peak memory of compiling a model that is larger than it: ``python benchmarks/large_model.py``.

Writes a Llama-shaped folder of random float16 weights (3 B parameters by default, 6 GB; kept in the
cache), then compiles it in a process of its own for each recipe.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from qcompiler_models.assets import cache_root
from suite.jobs import JobError, run_job

_HIDDEN, _INNER, _HEADS, _KV_HEADS, _WORDS = 3072, 8192, 24, 8, 32000


def main() -> None:
    options = _options()
    folder = _model(options.layers)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    print(f"{options.layers} layers, {size / 1e9:.2f} GB of float16", flush=True)
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        for name in options.recipes:
            made = pathlib.Path(place) / name
            recipe = {"base": name, "verify": {"enabled": False}}
            try:
                done = run_job(pathlib.Path(sys.executable), "compile_ours.py", {
                    "model": str(folder), "output": str(made), "recipe": recipe, "form": None,
                    "calibration": None,
                }, 3600)  # fmt: skip
            except JobError as error:
                print(f"{name}: failed: {error}", flush=True)
                continue
            written = sum(path.stat().st_size for path in made.iterdir())
            print(
                f"{name}: {done['seconds']:.0f} s, peak {done['peak_mb'] / 1e3:.2f} GB,"
                f" folder {written / 1e9:.2f} GB",
                flush=True,
            )
            shutil.rmtree(made)


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
    parser.add_argument("--layers", type=int, default=28, help="28 are 3 B parameters")
    parser.add_argument(
        "--recipes", type=lambda text: text.split(","), default=["w4-rtn", "w4-hqq"]
    )
    parser.add_argument("--place", type=pathlib.Path, default=None, help="for what is compiled")
    return parser.parse_args()


if __name__ == "__main__":
    main()
