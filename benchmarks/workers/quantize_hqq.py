"""Round the linear layers of a transformers folder with hqq: ``quantize_hqq.py SPEC.json``.

Spec: ``model`` (transformers folder), ``output`` (folder for the model with the rounded weights in
float32), ``bits``, ``group_size``, ``result`` (file). The head stays in float. ``mb`` of the result
is what the tool itself stores.
"""

from __future__ import annotations

import time

from job import STARTED, finish, peak_mb, read_spec


def main() -> None:
    spec = read_spec()
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM, AutoTokenizer

    imported, imports_mb = time.perf_counter(), peak_mb()
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=spec["bits"], group_size=spec["group_size"])
    place = {"compute_dtype": torch.float32, "device": "cpu", "del_orig": False}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    stored = sum(p.nbytes for p in model.parameters()) - sum(
        module.weight.nbytes for module in layers.values()
    )
    seconds = time.perf_counter()
    for module in layers.values():
        rounded = HQQLinear(module, config, **place)
        stored += rounded.W_q.nbytes
        stored += rounded.meta["scale"].nbytes + rounded.meta["zero"].nbytes
        module.weight.data = rounded.dequantize()
    ended = time.perf_counter()
    model.save_pretrained(spec["output"])
    AutoTokenizer.from_pretrained(spec["model"]).save_pretrained(spec["output"])
    finish(
        spec,
        seconds=ended - imported,
        rounding_seconds=ended - seconds,
        import_seconds=imported - STARTED,
        imports_mb=imports_mb,
        mb=stored / 1e6,
    )


if __name__ == "__main__":
    main()
