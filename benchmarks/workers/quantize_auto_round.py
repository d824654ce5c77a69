"""Quantize a transformers folder with auto-round: ``quantize_auto_round.py SPEC.json``.

Spec: ``model`` (folder), ``output`` (folder), ``bits``, ``group_size``, ``symmetric``, ``iters``,
``batch_size``, ``calibration`` (folder of ``.npz`` files with ``input_ids``), ``result`` (file).
"""

from __future__ import annotations

import pathlib
import time

from job import STARTED, finish, load_feeds, read_spec


def main() -> None:
    spec = read_spec()
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(
        spec["model"], dtype=torch.float32, local_files_only=True
    )
    tokens = [torch.from_numpy(feed["input_ids"]) for feed in load_feeds(spec["calibration"])]
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(spec["model"], local_files_only=True),
        bits=spec["bits"],
        group_size=spec["group_size"],
        sym=spec["symmetric"],
        iters=spec["iters"],
        batch_size=spec["batch_size"],
        nsamples=len(tokens),
        seqlen=tokens[0].shape[1],
        dataset=tokens,
        device_map="cpu",
    )
    made = pathlib.Path(spec["output"])
    rounder.quantize_and_save(str(made), format="auto_round")
    for path in made.glob("*/*"):  # it makes a folder of its own inside
        path.rename(made / path.name)
    finish(
        spec,
        seconds=time.perf_counter() - imported,
        import_seconds=imported - STARTED,
    )


if __name__ == "__main__":
    main()
