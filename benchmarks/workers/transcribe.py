"""Write down clips with ONNX Runtime GenAI, and time one of them: ``transcribe.py SPEC.json``.

Spec: ``folder``, ``threads``, ``prompt``, ``clips`` (sound files to write down, may be empty),
``timed`` (sound file), ``new_tokens``, ``result`` (file). Written: ``texts``; ``heard_ms`` until
the first token of the timed clip, ``token_ms`` of one after it.
"""

from __future__ import annotations

import json
import time
from typing import Any

from job import finish, read_spec


def main() -> None:
    spec = read_spec()
    import onnxruntime_genai as genai

    options = {"session_options": {"intra_op_num_threads": spec["threads"]}}
    config = genai.Config(spec["folder"])
    config.overlay(json.dumps({"model": {"decoder": options, "encoder": options}}))
    model = genai.Model(config)
    processor = model.create_multimodal_processor()
    texts = []
    for clip in spec["clips"]:
        generator = _generator(genai, model)
        generator.set_inputs(_heard(genai, processor, spec["prompt"], clip))
        while not generator.is_done():
            generator.generate_next_token()
        texts.append(processor.decode(generator.get_sequence(0)))
    times = {}
    for count in (2, spec["new_tokens"]):  # memory is had and kernels are chosen by the first
        inputs = _heard(genai, processor, spec["prompt"], spec["timed"])  # good for one text
        generator = _generator(genai, model, min_length=count + 8)
        started = time.perf_counter()
        generator.set_inputs(inputs)  # runs the encoder
        generator.generate_next_token()
        heard = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        ended = time.perf_counter()
        times = {"heard_ms": 1e3 * (heard - started), "token_ms": 1e3 * (ended - heard) / count}
    finish(spec, texts=texts, **times)


def _heard(genai: Any, processor: Any, prompt: str, clip: str) -> Any:
    return processor([prompt], audios=genai.Audios.open(clip))


def _generator(genai: Any, model: Any, **options: int) -> Any:
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=160, **options)
    return genai.Generator(model, parameters)


if __name__ == "__main__":
    main()
