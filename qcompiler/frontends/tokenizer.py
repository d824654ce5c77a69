"""The tokenizer that lies beside a model, and how long a text the model takes."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from qcompiler.diagnostics import Code, QcError

__all__ = ["encoder_of", "find_tokenizer", "longest_text"]

Encode = Callable[[str], Sequence[int]]

_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")


def find_tokenizer(model: Any) -> Encode | None:
    """Text to tokens, from the model's folder or GGUF file; None when there is no tokenizer.

    Args:
        model: What the user compiles: the path of a folder or of a file in one; of other objects
            the attribute ``name_or_path``, where it is a folder.

    Raises:
        QcError: QC707, the tokenizer cannot be read.
    """
    if isinstance(model, str | os.PathLike) and pathlib.Path(model).suffix == ".gguf":
        from qcompiler.frontends.decoder.genai import TOKENIZER, tokenizer_of_gguf

        files, _ = tokenizer_of_gguf(pathlib.Path(model))
        return encoder_of(files[TOKENIZER]) if TOKENIZER in files else None
    folder = _folder(model)
    if folder is None:
        return None
    if (folder / "tokenizer.json").is_file():
        return encoder_of((folder / "tokenizer.json").read_bytes(), str(folder))
    if not (folder / "tokenizer_config.json").is_file():
        return None
    import transformers

    try:
        slow = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many kinds, as its classes read files of many kinds
        raise _unreadable(str(folder), error) from error
    return lambda text: list(slow(text)["input_ids"])


def encoder_of(file: bytes, where: str = "tokenizer.json") -> Encode:
    """Text to tokens by the content of a ``tokenizer.json``.

    Raises:
        QcError: QC707, it cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(file)
    except Exception as error:  # the library raises ValueError, or Exception itself
        raise _unreadable(where, error) from error
    return lambda text: list(tokenizer.encode(text).ids)


def _unreadable(where: str, error: Exception) -> QcError:
    said = " ".join(str(error).split())[:300]
    return QcError(
        Code.UNSUPPORTED_INPUT,
        where,
        f"the tokenizer cannot be read: {said}",
        "copy its files again, or save it there by tokenizer.save_pretrained(FOLDER)",
    )


def longest_text(model: Any) -> int | None:
    """How many tokens the configuration in the model's folder allows; None when it is silent."""
    folder = _folder(model)
    config = getattr(model, "config", None)
    said: dict[str, Any] = {}
    if config is not None and hasattr(config, "to_dict"):
        said = config.to_dict()
    elif folder is not None and (folder / "config.json").is_file():
        try:
            said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError:
            return None  # who opens the folder says what is wrong with it
    found = (said.get(key) for key in _LENGTHS)
    # 0 and -1 are ways to say nothing
    return next((int(x) for x in found if isinstance(x, int) and x > 0), None)


def _folder(model: Any) -> pathlib.Path | None:
    place = model if isinstance(model, str | os.PathLike) else getattr(model, "name_or_path", "")
    path = pathlib.Path(place or "/nowhere")
    if path.is_file():
        path = path.parent
    return path if path.is_dir() else None
