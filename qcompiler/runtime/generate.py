"""Text from the folder of a compiled language model, by ONNX Runtime GenAI (an extra)."""

from __future__ import annotations

import importlib.util
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from qcompiler.diagnostics import Code, QcError

__all__ = ["CONFIG", "generate"]

CONFIG = "genai_config.json"
_GENERATION = "generation_config.json"


def generate(
    folder: pathlib.Path,
    prompt: str | None,
    *,
    audio: pathlib.Path | None = None,
    new_tokens: int = 128,
) -> Iterator[str]:
    """Pieces of text that go on from ``prompt``, or that say what is heard, as they are made.

    Search is as ``genai_config.json`` says. It ends at an end token, after ``new_tokens``, or where
    the text is as long as the model allows.

    Args:
        folder: An artifact folder of a language model, or of a Whisper.
        prompt: What the text begins with; not empty, and given to the model as it is. None is for
            sound: the tokens that ask for a transcript in English.
        audio: Sound file, of which a Whisper hears the first 30 seconds.
        new_tokens: At most so many tokens are made.

    Raises:
        QcError: QC411, the package is not installed, the prompt is empty or too long, or the model
            does not go with what is given; QC701, there is no such sound file; QC709, the folder
            holds no language model or no tokenizer; QC606, the runtime refuses it.
    """
    said = _check(folder)
    hears = said["type"] == "whisper"
    if hears != (audio is not None):
        raise QcError(
            Code.USAGE,
            "generate",
            f"the folder holds a model of the type {said['type']!r}, which "
            + ("reads sound" if hears else "reads no sound"),
            "give the sound file as --audio" if hears else "give a --prompt instead of --audio",
        )
    if audio is not None and not audio.is_file():
        raise QcError(Code.NO_FILE, str(audio), "there is no such file", "give a sound file")
    if prompt is None and not hears:
        raise QcError(Code.USAGE, "prompt", "there is none", "give a text to go on from: --prompt")
    import onnxruntime_genai as genai

    longest = int(said["context_length"])
    try:
        model = genai.Model(str(folder))
        tokenizer = genai.Tokenizer(model)
        text = _transcript(folder) if prompt is None else prompt
        given = tokenizer.encode(text)
    except (RuntimeError, ValueError) as error:
        raise _refused(folder, error) from error
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
        if audio is None:
            generator.append_tokens(given)
        else:
            generator.set_inputs(_heard(model, text, audio))
        stream = tokenizer.create_stream()
        while not generator.is_done():
            generator.generate_next_token()
            yield stream.decode(generator.get_next_tokens()[0])
    except (RuntimeError, ValueError) as error:
        raise _refused(folder, error) from error


def _heard(model: Any, prompt: str, audio: pathlib.Path) -> Any:
    """Inputs of a Whisper: the prompt's tokens and the spectrogram of a sound file."""
    import onnxruntime_genai as genai

    listen = model.create_multimodal_processor()
    try:
        return listen([prompt], audios=genai.Audios.open(str(audio)))
    except RuntimeError as error:
        raise QcError(
            Code.UNSUPPORTED_INPUT,
            str(audio),
            f"cannot be read as sound: {' '.join(str(error).split())[:200]}",
            "give a wav, mp3 or flac file",
        ) from error


def _transcript(folder: pathlib.Path) -> str:
    """The tokens that ask a Whisper for a transcript in English without times."""
    path = folder / _GENERATION
    said = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    task = "<|en|><|transcribe|>" if said.get("is_multilingual") else ""
    return f"<|startoftranscript|>{task}<|notimestamps|>"


def _check(folder: pathlib.Path) -> Mapping[str, Any]:
    """What the configuration says of the model, its type and ``context_length`` at least."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        raise QcError(
            Code.USAGE,
            "generate",
            "generating text needs onnxruntime-genai, which is not installed",
            'pip install "qcompiler-onnx[genai]"',
        )
    if not folder.is_dir():
        raise QcError(
            Code.NO_FILE, str(folder), "there is no such folder", "give one that a compile wrote"
        )
    if not (folder / CONFIG).is_file():
        raise QcError(
            Code.NOT_ARTIFACT,
            str(folder),
            f"the folder has no {CONFIG}, so it holds no language model",
            "compile the transformers folder or GGUF file of a decoder, or a Whisper",
        )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise QcError(
                Code.NOT_ARTIFACT,
                str(folder),
                f"the folder has no {name}",
                "compile a folder that holds the tokenizer, or copy its files into this one",
            )
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["model"]
        return {**said, "type": str(said["type"]), "context_length": int(said["context_length"])}
    except (ValueError, KeyError, TypeError) as error:
        raise QcError(
            Code.NOT_ARTIFACT,
            str(folder / CONFIG),
            f"does not say the model's type and context_length ({type(error).__name__})",
            "compile the model again",
        ) from error


def _refused(folder: pathlib.Path, error: Exception) -> QcError:
    return QcError(
        Code.DOES_NOT_LOAD,
        str(folder),
        f"onnxruntime-genai fails: {' '.join(str(error).split())[:500]}",
        "check that onnxruntime-genai fits the installed onnxruntime",
    )
