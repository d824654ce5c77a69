"""Time ONNX Runtime GenAI on a folder: ``generate.py SPEC.json``.

Spec: ``folder``, ``threads``, ``prompts`` (lists of tokens, by name), ``new_tokens``, ``result``
(file). Written: by name of the prompt, tokens per second of reading it and of what comes after.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from job import finish, read_spec


def main() -> None:
    spec = read_spec()
    import onnxruntime_genai as genai

    config = genai.Config(spec["folder"])
    session = {"intra_op_num_threads": spec["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
    model = genai.Model(config)
    rates = {}
    for name, prompt in spec["prompts"].items():
        _rates(genai, model, prompt, 2)  # memory is had and kernels are chosen
        rates[name] = _rates(genai, model, prompt, spec["new_tokens"])
    finish(spec, rates=rates)


def _rates(genai: Any, model: Any, prompt: Sequence[int], new_tokens: int) -> dict[str, float]:
    length = len(prompt) + new_tokens + 1
    parameters = genai.GeneratorParams(model)
    # no end token before the last one
    parameters.set_search_options(do_sample=False, min_length=length, max_length=length)
    generator = genai.Generator(model, parameters)
    started = time.perf_counter()
    generator.append_tokens(prompt)
    generator.generate_next_token()  # of the logits that the prompt gave
    read = time.perf_counter()
    for _ in range(new_tokens):
        generator.generate_next_token()
    ended = time.perf_counter()
    return {
        "prefill": len(prompt) / (read - started),
        "decode": new_tokens / (ended - read),
    }


if __name__ == "__main__":
    main()
