"""What to do about each code: the second half of its section in ``docs/diagnostics.md``.

A diagnostic's own hint is about its case; this is about the kind.
"""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.diagnostics import Code

__all__ = ["REMEDIES"]

_REPORT = "Report it with the message and, if you can, the folder of `--dump`."

REMEDIES: Mapping[Code, str] = {
    # kept in float
    Code.NO_KERNEL: "Nothing: `qcompile targets show NAME` lists what the target computes in low "
    "precision. If your runtime has such a kernel, add a row (docs/writing_a_target.md).",
    Code.NOT_CONSTANT: "If the operand is a weight in truth, export it as an initializer; a "
    "product of two activations (as in attention) stays in float.",
    Code.UNKNOWN_SHAPE: "Give `calibration=` or `example_inputs=` that the model runs on, or fix "
    "the dimension at export.",
    Code.GROUP_SIZE: "Choose a smaller `group_size` for this node by a rule.",
    Code.DOES_NOT_PAY: "Usually nothing. `qcompile probe --save` fits the costs to your machine; "
    "`force = true` in a rule quantizes it all the same.",
    Code.KEPT_BY_RULE: "Remove or narrow the rule, or the edit of the plan, to let the compiler "
    "decide.",
    Code.NOT_SELECTED: "Add the scheme to `schemes` of the recipe, or a rule for this node.",
    Code.NO_CALIBRATION: "Give `calibration=`: some dozens of typical feeds.",
    Code.WRONG_DTYPE: "Nothing: integers and booleans are not quantized. A float64 model is best "
    "exported as float32.",
    Code.CONDITION: "The message says what was found and what is wanted; often another export "
    "(constant weight, fixed rank) meets it.",
    Code.TRAP: "Nothing: the compiler avoids what the runtime is known to get wrong. A newer "
    "runtime may be free of it; `qcompile probe` tells.",
    Code.IN_SUBGRAPH: "If the branch or loop is constant, export the model without it.",
    Code.CUSTOM_OP: "Nothing: the operator runs in float. Nodes around it are quantized as usual.",
    Code.ALREADY_QUANTIZED: "Nothing: what came quantized keeps its numbers. The recipe `float` "
    "takes the quantization out, `quantized.strip` does where no kernel needs it.",
    Code.FLOAT_NEIGHBOURS: "Look at what keeps the neighbours in float; a `force` rule on the "
    "group overrides the cost.",
    Code.SHAPE_COMPUTATION: "Nothing.",
    Code.SHARED_WEIGHT: "Quantize both readers by rules, or give each its own copy of the weight.",
    Code.DATA_MOVEMENT: "Nothing: it follows its neighbours.",
    Code.MEASURED_SLOWER: "Run `qcompile probe --save` so that the costs fit this machine, compile "
    "again on an idle machine, or set `force = true` if size matters more.",
    Code.FOR_SIZE: "Leave `embeddings` out (`embeddings = false`) to keep tables in float.",
    Code.SCALE_PER_TENSOR: "Form `ort` of an ONNX Runtime target has scales per token; give "
    "`calibration=` for static ones.",
    Code.FLOAT_WEIGHTS: "The file is small, memory and speed are float's. For speed use `int` with "
    "a `group_size` that is a multiple of 16.",
    Code.FLOAT_ZERO_POINTS: '`weights.zero_point = "int"` is smaller and faster, and further from '
    "the weights.",
    Code.UNPACKED_WEIGHTS: "Nothing, when the file shall be small. 2, 4 and 8 bits need no "
    "unpacking.",
    Code.FORCED: "Remove `force` from the recipe or rule to get the faster form.",
    Code.SENSITIVE: "Raise `max_drop`, or lower `keep_float`, to keep it quantized; "
    "`qcompile explain OUT --sensitivity` shows the ranking.",
    Code.REFERENCE_ONLY: "Use the artifact to see what the precision costs; compile for a target "
    "that has the kernels (`tensorrt`, `cuda`) to deploy it.",
    Code.COARSE_WEIGHT: 'Use `weights.granularity = "channel"` where the target has it, or a '
    "rule with scheme `static` on the node.",
    Code.INPUT_LAYER: "Nothing, it is a small part of the work. A rule with scheme `static` on the "
    "node, or `force = true`, quantizes it.",
    Code.ROUNDED_ACTIVATIONS: "`weights.accuracy_level = 1` multiplies floats, as the file did; it "
    "is several times slower.",
    Code.NOTHING_QUANTIZED: "The message has the commonest reason, `qcompile explain` that of each "
    "node. Weight-only recipes are for products; convolutions want `static-int8` and data.",
    # calibration
    Code.EMPTY_CALIBRATION: "Check the path, the filter or the generator: one sample is the least, "
    "some dozens are good.",
    Code.FEED_NAME: "Use the names that the message lists; `qcompile opt MODEL --passes ''` prints "
    "the inputs.",
    Code.FEED_SHAPE: "Dimensions named alike must be equal; `?` and names take any size.",
    Code.FEED_DTYPE: "Convert with `.astype(...)`; only lossless conversions are done for you.",
    Code.NOT_FINITE: "Run the float model on that feed: the sample or its preprocessing is broken, "
    "or a layer overflows.",
    Code.CALIBRATION_WOULD_HELP: "Give `calibration=` and use recipe `auto` or `static-int8`.",
    Code.DEAD_TENSOR: "Give data that uses this part of the model; else it is stored as zero.",
    Code.CALIBRATION_SOURCE: "Iterate over the source by itself to see where it fails. Pickled "
    "arrays are refused: save plain arrays with `numpy.savez`.",
    Code.FEW_SAMPLES: 'Give more samples, or use `method = "minmax"`. GPTQ wants as many rows '
    "(tokens) as its widest layer has input channels; `w4-hqq` needs no data.",
    Code.SUMMARY_MISMATCH: "Calibrate again with the data, or use the summary with its own model.",
    Code.INFINITE_IGNORED: "Nothing, when the infinity is a mask. Else mend the layer that makes "
    "it.",
    Code.UNCOVERED: "Give more, and more varied, samples, in several feeds: other speakers, "
    "subjects, lengths.",
    Code.OWN_TEXT: "Give calibration text: what the model will read is better than what it writes. "
    "`text.own_samples = 0` makes missing data an error.",
    Code.TEXT_CUT: "Raise `text.length` up to what the model takes, or give shorter texts.",
    # algorithms
    Code.NOT_FINITE_WEIGHT: "The checkpoint is damaged or training diverged: load an earlier one.",
    Code.NOT_LIFTABLE: "Keep the layer in float by a rule, or use a method without gradients.",
    Code.SMOOTHED: "Nothing. `smoothing.alpha = null` turns it off, a number fixes the exponent.",
    Code.NOT_SMOOTHED: "Nothing. `smoothing.insert` allows a Mul where nothing can fold.",
    Code.BIAS_ABSORBED: "Nothing. `absorb_biases = false` turns it off.",
    Code.BIAS_KEPT: "Nothing to do.",
    Code.SCALES_LEARNED: (
        "Nothing. The loss is that of samples on which no scale learned (the algorithm may have)."
    ),
    Code.SCALES_KEPT: (
        "Nothing, where scales are tied. If learning did not help, give more data, or set a smaller"
        " `distill.lr`."
    ),
    Code.BIAS_ESTIMATED: "Nothing. The message names the operator that cannot be walked through.",
    Code.STEPS_CUT: "Raise `auto.seconds`, or set the keys of the steps in the recipe.",
    Code.STEPS_UNTRIED: "Give calibration data as a list of feeds: some are held out to judge by. "
    "If nothing is quantized, the plan has each node's reason. A given plan is kept as it is.",
    Code.EQUALIZED: "Nothing. `equalize_layers = false` or `equalize_gates = false` turns it off.",
    Code.NOT_EQUALIZED: "Nothing, unless the message asks for data that can be read twice.",
    Code.ROUNDING_LEARNED: 'Nothing. `weights.rounding = "moment"` compiles faster.',
    Code.ROUNDING_KEPT: "Nothing: the layer is rounded by the second moment, or to nearest.",
    Code.FEW_FOR_LEARNING: 'Give more samples, or use `weights.rounding = "moment"`.',
    Code.SENSITIVITY_UNKNOWN: "The message says what stood in the way; `rules` with scheme = "
    "'float' keep nodes of your choice in float.",
    Code.NO_TOKENIZER: "Put `tokenizer.json` into the model's folder, or give tokens: an integer "
    "array `[samples, length]`.",
    Code.ROUNDED_IN_STAGES: "Nothing.",
    Code.DAMPING_RAISED: "Give more, and more varied, calibration data; a layer with fewer rows of "
    "data than input channels has such a Hessian.",
    Code.DEAD_CHANNELS: "Check that the calibration data exercises this part of the model. Weights "
    "of such channels are rounded to nearest.",
    Code.SALIENT_SCALED: "Nothing.",
    Code.SALIENT_KEPT: "`awq.insert` or `teq.insert` puts a Mul where nothing absorbs the scales, "
    "at the cost of a pass over the activation.",
    Code.BITS_ALLOTTED: "Nothing: the message says how many layers got how many bits.",
    # recipe and usage
    Code.UNKNOWN_TARGET: "`qcompile targets` lists the names; a file must end in `.toml`.",
    Code.UNKNOWN_RECIPE: "docs/recipes.md lists the names; a file must end in `.toml`, `.yaml` or "
    "`.json`.",
    Code.RECIPE_KEY: "docs/recipes.md has every key with its values.",
    Code.RULE_MATCHES_NOTHING: "Use a name that `qcompile explain` prints; a rule must match, so "
    "that a typo cannot pass in silence.",
    Code.TARGET_CANNOT: "Choose another scheme, form or target; `qcompile targets show NAME` tells "
    "what there is.",
    Code.UNKNOWN_PASS: "`qcompile passes` lists passes and options; the form is "
    "`name,name{option=value}`.",
    Code.PASS_ORDER: "Put a pass that gives the fact before it; `qcompile passes` tells which.",
    Code.BAD_PLAN: "Plan anew with the same model, target and form, then edit that plan.",
    Code.TARGET_FILE: "`qcompile targets show NAME --toml` prints a file to start from.",
    Code.NEEDS_CALIBRATION: "Give `calibration=`, or use `dynamic-int8`.",
    Code.USAGE: "The message says what was found and what is wanted.",
    # lowering
    Code.KEY_UNUSED: "Leave the key out for this model, or give the model that it is meant for.",
    Code.NO_LOWERING: "Keep the node in float by a rule. " + _REPORT,
    Code.OPSET_KEPT: "Export with a newer opset to get the kernels that need it.",
    Code.OPSET_RAISED: "Nothing: the operators mean the same.",
    Code.NO_PREFILL: "`prefill` wants a language model with `input_ids`, weights of 2, 4 or 8 bits "
    "in MatMulNBits, and form `ort`.",
    Code.FP8_SCALES: "Nothing. Leave `gptq.fp8_scales` out where nothing multiplies 8-bit floats: "
    "free scales are nearer to the weights.",
    Code.INT8_CACHE: "Nothing. Leave `kv_cache` out for a float cache; `int8-channel` is nearer "
    "to it than `int8-tensor`.",
    Code.TILED_ATTENTION: "Nothing if sequences are as long as the sample's; compile with a sample "
    "of the usual length, since the choice goes by it.",
    Code.PREFILL_MEMORY: "Nothing; leave `prefill` out if memory is short.",
    # verification
    Code.KERNEL_NOT_SEEN: "The node runs in another form than planned, so it may be slow. Use the "
    "form and the version of the runtime that the target was probed with. " + _REPORT,
    Code.LEFTOVER_QDQ: "The conversion costs time; form `ort` has none.",
    Code.WRONG_RESULT: "Compile with `--dump` and look for the layer, keep it in float by a rule, "
    "or give calibration data that look like the real ones.",
    Code.LOW_FIDELITY: "More or better calibration data, `dynamic-int8`, or float for the layers "
    "that hurt; where weights alone are quantized, an algorithm that uses calibration data, "
    "smaller groups or more bits. Judge by your own metric: a low cosine may be harmless.",
    Code.NOT_VERIFIED: "Run `qcompile verify OUT --against MODEL` on a machine of the target.",
    Code.DOES_NOT_LOAD: "Compare the runtime's version with the report's. " + _REPORT,
    Code.FLOAT_MODEL_FAILS: "Run the float model in ONNX Runtime by itself: it must load and "
    "accept the feed. Custom operators: compile without calibration data.",
    Code.METRIC_FAILED: "Call the metric on the float model by hand. The artifact you got is the "
    "best that was scored before it failed.",
    Code.DROP_MISSED: "The message says how close it came. Allow more, calibrate on more data, or "
    "see whether the metric differs from run to run.",
    Code.DROP_HELD: "Nothing to do.",
    Code.NOT_MONOTONE: "Try fewer nodes with `keep_float`; a metric on few samples is noisy.",
    # files and models at the door
    Code.NO_FILE: "Check the path. Models are read from this machine only; download them first.",
    Code.NOT_ONNX: "Fetch the file again; a Git LFS pointer is text of some 130 bytes.",
    Code.EXTERNAL_DATA: "Keep the data file beside the model, under its own name; links that leave "
    "the folder and absolute paths are refused.",
    Code.UNKNOWN_OPSET: "Export again, or use `onnx.version_converter`.",
    Code.NO_EXPORT: "Mend the module at the place named, or pass an `ExportedProgram` or an ONNX "
    "file.",
    Code.NOT_WRITABLE: "Choose an empty or new folder on a disk with room. What was there before "
    "is as it was.",
    Code.UNSUPPORTED_INPUT: "Give an ONNX file, a torch module or a transformers folder. Pickled "
    "checkpoints are not executed.",
    Code.NEEDS_EXAMPLE_INPUTS: "Pass `example_inputs=` as you would call the module.",
    Code.NOT_ARTIFACT: "Compile again. To change a decision edit the plan and pass it as `plan=`.",
    Code.INVALID_GRAPH: "`onnx.checker.check_model` may tell more; export the model again.",
    Code.DEFAULT_INPUT: "Remove the initializer from the file to keep the input.",
    Code.FIXED_SHAPE: "Mend what fixes the shape (Python numbers made of tensor sizes), or accept "
    "the shapes of the example.",
    Code.CAST_TO_FLOAT: "Nothing: the artifact takes and gives float32.",
    Code.NOT_EXPORTABLE: "Compile with weights of 2, 3, 4 or 8 bits (AWQ: 4) in groups that divide "
    "the inputs, and with no other change to the layer; `qcompile export` names it.",
    Code.TOKENIZER_MISSING: "Save the tokenizer into the artifact's folder "
    "(`tokenizer.save_pretrained(OUT)`), or compile a folder that holds model and tokenizer.",
    Code.CLASS_ASSUMED: "Nothing if the class is right; else name it in `architectures` of the "
    "folder's config.json.",
    Code.CHECKPOINT_DIFFERS: "Nothing: it says what the format does not hold as the artifact does.",
    Code.BUFFERS_CHANGE: "Make the buffer an input and an output of the module: who runs the "
    "artifact then keeps the state.",
    # our own bug
    Code.PASS_CONTRACT: _REPORT,
    Code.INTERNAL: _REPORT,
}
