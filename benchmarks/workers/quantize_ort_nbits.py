"""Quantize with ONNX Runtime's MatMulNBitsQuantizer: ``quantize_ort_nbits.py SPEC.json``.

Spec: ``model``, ``output`` (file), ``algorithm`` (``rtn``, ``hqq``, ``k_quant``), ``bits``,
``group_size``, ``symmetric``, ``result`` (file).
"""

from __future__ import annotations

import time

from job import STARTED, finish, read_spec


def main() -> None:
    spec = read_spec()
    import onnx
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    from onnxruntime.quantization.quant_utils import QuantFormat

    imported = time.perf_counter()
    group, bits = spec["group_size"], spec["bits"]
    form = QuantFormat.QOperator
    if spec["algorithm"] == "hqq":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=group, bits=bits, quant_format=form)
    elif spec["algorithm"] == "k_quant":
        config = nbits.KQuantWeightOnlyQuantConfig(quant_format=form)
    else:
        config = nbits.DefaultWeightOnlyQuantConfig(
            block_size=group, is_symmetric=spec["symmetric"], bits=bits, accuracy_level=4
        )
    model = onnx.load(spec["model"])
    heads = [node.name for node in model.graph.node if "lm_head" in node.name]
    quantizer = nbits.MatMulNBitsQuantizer(
        model,
        block_size=group,
        is_symmetric=spec["symmetric"],
        bits=bits,
        accuracy_level=4,
        nodes_to_exclude=heads,
        algo_config=config,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(spec["output"], use_external_data_format=False)
    finish(spec, seconds=time.perf_counter() - imported, import_seconds=imported - STARTED)


if __name__ == "__main__":
    main()
