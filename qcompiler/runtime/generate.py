"""Text from the folder of a compiled language model, by ONNX Runtime GenAI (an extra)."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Iterator

from qcompiler.diagnostics import Code, QcError

__all__ = ["CONFIG", "generate"]

CONFIG = "genai_config.json"


def generate(folder: pathlib.Path, prompt: str, *, new_tokens: int = 128) -> Iterator[str]:
    """Pieces of text that go on from ``prompt``, as they are made.

    Search is as ``genai_config.json`` says. It ends at an end token or after ``new_tokens``.

    Args:
        folder: An artifact folder of a language model.
        prompt: What the text begins with; not empty, and given to the model as it is.
        new_tokens: At most so many tokens are made.

    Raises:
        QcError: QC411, the package is not installed, or the prompt is empty or too long; QC709,
            the folder holds no language model or no tokenizer; QC606, the runtime refuses it.
    """
    _check(folder)
    import onnxruntime_genai as genai

    try:
        model = genai.Model(str(folder))
        tokenizer = genai.Tokenizer(model)
        given = tokenizer.encode(prompt)
    except (RuntimeError, ValueError) as error:
        raise _refused(folder, error) from error
    if not len(given):
        raise QcError(
            Code.USAGE, "prompt", "the prompt has no tokens", "give some text to go on from"
        )
    try:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=len(given) + new_tokens)
        generator = genai.Generator(model, parameters)
        generator.append_tokens(given)
        stream = tokenizer.create_stream()
        while not generator.is_done():
            generator.generate_next_token()
            yield stream.decode(generator.get_next_tokens()[0])
    except (RuntimeError, ValueError) as error:
        raise _refused(folder, error) from error


def _check(folder: pathlib.Path) -> None:
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise QcError(
            Code.USAGE,
            "generate",
            "generating text needs onnxruntime-genai, which is not installed",
            'pip install "qcompiler-onnx[genai]"',
        )
    if not (folder / CONFIG).is_file():
        raise QcError(
            Code.NOT_ARTIFACT,
            str(folder),
            f"the folder has no {CONFIG}, so it holds no language model",
            "compile the transformers folder or GGUF file of a decoder",
        )
    if not (folder / "tokenizer.json").is_file():
        raise QcError(
            Code.NOT_ARTIFACT,
            str(folder),
            "the folder has no tokenizer.json",
            "compile a folder that holds the tokenizer, or copy its files into this one",
        )


def _refused(folder: pathlib.Path, error: Exception) -> QcError:
    return QcError(
        Code.DOES_NOT_LOAD,
        str(folder),
        f"onnxruntime-genai fails: {' '.join(str(error).split())[:500]}",
        "check that onnxruntime-genai fits the installed onnxruntime",
    )
