"""CTranslate2 model files: what is written comes out, and a broken file says what is wrong."""

from __future__ import annotations

import pathlib
import struct

import numpy as np
import pytest

from qcompiler_models import AssetError
from qcompiler_models.ctranslate2 import read_variables

CODES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def text(string: str) -> bytes:
    raw = string.encode() + b"\0"
    return struct.pack("<H", len(raw)) + raw


def variable(name: str, array: np.ndarray) -> bytes:
    head = text(name) + struct.pack("<B", array.ndim)
    shape = struct.pack(f"<{array.ndim}I", *array.shape)
    return (
        head + shape + struct.pack("<BI", CODES[str(array.dtype)], array.nbytes) + array.tobytes()
    )


def model(
    *variables: bytes,
    aliases: tuple[tuple[str, str], ...] = (),
    version: int = 6,
    count: int | None = None,
) -> bytes:
    head = struct.pack("<I", version) + text("SomeSpec") + struct.pack("<I", 3)
    body = struct.pack("<I", len(variables) if count is None else count) + b"".join(variables)
    pairs = b"".join(text(alias) + text(name) for alias, name in aliases)
    return head + body + struct.pack("<I", len(aliases)) + pairs


WEIGHT = np.arange(6, dtype=np.float16).reshape(2, 3)


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "model.bin"


@pytest.mark.parametrize("dtype", CODES)
def test_variables_come_out_as_they_were_written(file: pathlib.Path, dtype: str) -> None:
    written = WEIGHT.astype(dtype)
    file.write_bytes(model(variable("w", written), variable("heads", np.array(6, np.int16))))
    found = read_variables(file, "SomeSpec")
    assert list(found) == ["w", "heads"]
    np.testing.assert_array_equal(found["w"], written)
    assert found["w"].dtype == written.dtype
    assert found["heads"].shape == ()
    assert found["heads"] == 6


def test_an_alias_is_the_array_it_stands_for(file: pathlib.Path) -> None:
    file.write_bytes(model(variable("w", WEIGHT), aliases=(("tied", "w"),)))
    found = read_variables(file, "SomeSpec")
    assert found["tied"] is found["w"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the version needs 4 bytes, 0 are left"),
        (model(version=5), "format 5 is not known; wanted 6"),
        (model(variable("w", WEIGHT), variable("w", WEIGHT)), "variable 'w' comes twice"),
        (model(variable("w", WEIGHT), aliases=(("t", "v"),)), "alias 't' of 'v'"),
        (model(variable("w", WEIGHT), aliases=(("w", "w"),)), "alias 'w' of 'w'"),
        (model(variable("w", WEIGHT)) + b"x", "1 bytes follow the last alias"),
        (model(text("w") + b"\xff"), "has rank 255; at most 8"),
        (model(text("w") + struct.pack("<BIBI", 1, 2, 9, 4)), "has type 9; known"),
        (model(text("w") + struct.pack("<BIBI", 1, 2, 0, 4)), "has 4 bytes, not 8"),
        (
            model(text("w") + struct.pack("<BIIBI", 2, 2**31, 2**31, 0, 0)),
            "has 0 bytes, not 18446744073709551616",
        ),
        (
            model(text("w") + struct.pack("<BIBI", 1, 2**29, 0, 2**31)),
            "variable 'w' needs 2147483648 bytes, 4 are left",
        ),
        (model(struct.pack("<H", 2) + b"\xff\xff"), "is not text"),
        (model(variable("w", WEIGHT), count=2**32 - 1), "are left"),
    ],
)
def test_a_broken_file_says_what_is_wrong(file: pathlib.Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(AssetError) as caught:
        read_variables(file, "SomeSpec")
    assert message in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_model_of_another_kind_is_refused(file: pathlib.Path) -> None:
    file.write_bytes(model())
    with pytest.raises(AssetError, match="holds a 'SomeSpec'; wanted 'WhisperSpec'"):
        read_variables(file, "WhisperSpec")


def test_a_file_cut_anywhere_is_refused(file: pathlib.Path) -> None:
    whole = model(variable("w", WEIGHT), aliases=(("tied", "w"),))
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(AssetError):
            read_variables(file, "SomeSpec")
