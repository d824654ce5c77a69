"""Quantize with GPTQModel: ``quantize_gptqmodel.py SPEC.json``.

Spec: ``model`` (transformers folder), ``output`` (folder of the checkpoint), ``bits``,
``group_size``, ``symmetric``, ``calibration`` (folder of ``.npz`` files with ``input_ids``),
``result`` (file). Everything else is what the tool takes by itself: bfloat16, groups in the order
of their activations, damping 0.05.
"""

from __future__ import annotations

import os
import time

from job import STARTED, finish, load_feeds, peak_mb, read_spec


def main() -> None:
    spec = read_spec()
    for key in ("model", "output", "calibration", "result"):
        spec[key] = os.path.abspath(spec[key])
    os.chdir(
        os.path.dirname(spec["result"])
    )  # a temporary folder: the tool leaves logs where it is
    os.environ["GPTQMODEL_CPU_WORKERS"] = str(os.cpu_count())
    from gptqmodel import GPTQModel, QuantizeConfig

    imported, imports_mb = time.perf_counter(), peak_mb()
    rows = [feed["input_ids"][0].tolist() for feed in load_feeds(spec["calibration"])]
    config = QuantizeConfig(bits=spec["bits"], group_size=spec["group_size"], sym=spec["symmetric"])
    model = GPTQModel.load(spec["model"], config, device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows])
    model.save(spec["output"])
    finish(
        spec,
        seconds=time.perf_counter() - imported,
        import_seconds=imported - STARTED,
        imports_mb=imports_mb,
    )


if __name__ == "__main__":
    main()
