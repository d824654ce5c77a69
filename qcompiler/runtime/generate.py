"""Text from the folder of a compiled language model, by ONNX Runtime GenAI (an extra)."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Iterator

from qcompiler.diagnostics import Code, QcError

__all__ = ["CONFIG", "generate"]

CONFIG = "genai_config.json"


def generate(folder: pathlib.Path, prompt: str, *, new_tokens: int = 128) -> Iterator[str]:
    """Pieces of text that go on from ``prompt``, as they are made.

    Search is as ``genai_config.json`` says. It ends at an end token, after ``new_tokens``, or where
    the text is as long as the model allows.

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
    longest = _longest(folder)
    if not 0 < len(given) < longest:
        raise QcError(
            Code.USAGE,
            "prompt",
            f"the prompt has {len(given)} tokens, wanted 1 to {longest - 1}",
            "give a text to go on from that leaves room in what the model can read",
        )
    try:
        parameters = genai.GeneratorParams(model)
        parameters.set_search_options(max_length=min(len(given) + new_tokens, longest))
        generator = genai.Generator(model, parameters)
        generator.append_tokens(given)
        stream = tokenizer.create_stream()
        while not generator.is_done():
            generator.generate_next_token()
            yield stream.decode(generator.get_next_tokens()[0])
    except (RuntimeError, ValueError) as error:
        raise _refused(folder, error) from error


def _longest(folder: pathlib.Path) -> int:
    """How many tokens a text may have, prompt included."""
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return int(said["model"]["context_length"])
    except (ValueError, KeyError, TypeError) as error:
        raise QcError(
            Code.NOT_ARTIFACT,
            str(folder / CONFIG),
            f"does not say the model's context_length ({type(error).__name__})",
            "compile the model again",
        ) from error


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
