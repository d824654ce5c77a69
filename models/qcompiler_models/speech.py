"""Recorded speech with its text, what Whisper hears of it, and word error rates."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import math
import pathlib
import re
import wave
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from qcompiler_models.assets import Asset, fetch
from qcompiler_models.scores import edit_distance

__all__ = [
    "FRAMES",
    "MELS",
    "Clip",
    "calibration_clips",
    "log_mel",
    "mel_filters",
    "scored_clips",
    "upsample",
    "word_error_rate",
    "words",
]

_UTTERANCES = Asset(
    kind="deb",
    name="pocketsphinx-testdata",
    version="0.8+5prealpha+1-15",
    members=(
        "usr/share/pocketsphinx/test/data/cards/*",
        "usr/share/pocketsphinx/test/data/librivox/*",
        "usr/share/pocketsphinx/test/data/goforward.raw",
        "usr/share/pocketsphinx/test/data/numbers.raw",
        "usr/share/pocketsphinx/test/data/something.raw",
        "usr/share/pocketsphinx/test/data/tidigits/dhd.2934z.raw",
    ),
    digest="7a4e3c809f9e8273d9f076598d3773ce6a2db1356979fcb8d3c7e4d49d19a11f",
)
_PROMPTS = Asset(
    kind="deb",
    name="asterisk-core-sounds-en-wav",
    version="1.6.1-1",
    members=("usr/share/asterisk/sounds/en_US_f_Allison/*.wav",),
    excluded=("*/en_US_f_Allison/*/*",),
    digest="38963e9a6a632d1742d0f0e42e09abc8a29b131c48082483e6b6076b7d77cc5f",
)
_PROMPT_TEXTS = Asset(
    kind="deb",
    name="asterisk-core-sounds-en",
    version="1.6.1-1",
    members=("usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz",),
    digest="e9dee775636464794fb89af9560aff790541423496eefc951cd41e967a58a012",
)
_RECORDINGS: Final = {
    "goforward": "go forward ten meters",
    "numbers": "thirty three four six nine two",
    "something": "go somewhere and do something",
    "tidigits/dhd.2934z": "two nine three four zero",
}
_RATE: Final = 16_000
_SECONDS: Final = 30
_FFT: Final = 400
_HOP: Final = 160
MELS: Final = 80
FRAMES: Final = _SECONDS * _RATE // _HOP
_FEWEST_WORDS: Final = 8  # of a prompt: shorter ones say little about a decoder

# Mel scale of Slaney's Auditory Toolbox: linear to 1000 Hz, logarithmic above.
_HZ_PER_MEL: Final = 200 / 3
_KNEE_HZ: Final = 1000.0
_LOG_STEP: Final = math.log(6.4) / 27
_SPELLED: Final = {"mr": "mister"}
_NUMBERS: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen"),
    *("eighteen", "nineteen", "twenty"),
)

_Floats = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True)
class Clip:
    """A recording.

    Attributes:
        name: Unique.
        samples: Mono, 16 kHz, from -1 to 1.
        text: What is said.
    """

    name: str
    samples: _Floats = dataclasses.field(repr=False, compare=False)
    text: str


def scored_clips() -> tuple[Clip, ...]:
    """All utterances, and every second one of the prompts."""
    return (*_utterances(), *_prompts()[::2])


def calibration_clips(n: int) -> tuple[Clip, ...]:
    """``n`` clips of which ``scored_clips`` gives none; all there are, if fewer.

    A quarter are recordings of other speakers in other rooms: ranges found on one voice do not
    hold for the next one. The rest are prompts, evenly spread.
    """
    prompts, recordings = _prompts()[1::2], _recordings()[: n // 4]
    count = min(n - len(recordings), len(prompts))
    chosen = np.linspace(0, len(prompts) - 1, count, dtype=int)
    return (*recordings, *(prompts[i] for i in chosen))


@functools.cache
def _recordings() -> tuple[Clip, ...]:
    """Four commands and numbers, 16 kHz samples without a header."""
    data = fetch(_UTTERANCES) / "usr/share/pocketsphinx/test/data"
    return tuple(
        Clip(name, _floats((data / f"{name}.raw").read_bytes()), text)
        for name, text in _RECORDINGS.items()
    )


@functools.cache
def _utterances() -> tuple[Clip, ...]:
    """Ten readings of two speakers at 16 kHz; their texts are in lower case."""
    data = fetch(_UTTERANCES) / "usr/share/pocketsphinx/test/data"
    clips = []
    for text, files in (
        ("librivox/transcription", "librivox"),
        ("cards/cards.transcription", "cards"),
    ):
        for line in (data / text).read_text(encoding="utf-8").splitlines():
            said, name = re.fullmatch(r"<s>(.*)</s>\s*\((.*)\)", line.strip()).groups()  # type: ignore[union-attr]
            clips.append(Clip(f"{files}/{name}", _read(data / files / f"{name}.wav"), said.strip()))
    return tuple(clips)


@functools.cache
def _prompts() -> tuple[Clip, ...]:
    """Sentences of a telephone exchange, one speaker, 8 kHz: those that are words throughout."""
    folder = fetch(_PROMPTS) / "usr/share/asterisk/sounds/en_US_f_Allison"
    seen: set[tuple[str, ...]] = set()
    clips = []
    for name, text in _prompt_texts():
        said = tuple(words(text))
        path = folder / f"{name}.wav"
        if len(said) < _FEWEST_WORDS or said in seen or not path.is_file():
            continue
        seen.add(said)
        samples = _read(path)
        if len(samples) <= _SECONDS * _RATE:
            clips.append(Clip(name, samples, text))
    return tuple(clips)


def _prompt_texts() -> Iterator[tuple[str, str]]:
    """File name and text of each prompt whose text is read as it is written, sorted by name."""
    path = fetch(_PROMPT_TEXTS) / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        found = dict(line.split(":", 1) for line in lines if ":" in line and line[0] != ";")
    for name, text in sorted(found.items()):
        # A text that goes on before or after is one of a pair which say the same.
        if not re.search(r"[\d\[\]<>()#*\"/]|\.\.\.|www", text):
            yield name.strip(), " ".join(text.split())


def _read(path: pathlib.Path) -> _Floats:
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2), "16-bit mono, as digested"
        rate = file.getframerate()
        samples = _floats(file.readframes(file.getnframes()))
    return samples if rate == _RATE else upsample(samples, _RATE // rate)


def _floats(content: bytes) -> _Floats:
    return np.frombuffer(content, "<i2").astype(np.float32) / np.float32(32768)


def upsample(samples: _Floats, factor: int) -> _Floats:
    """The same sound at ``factor`` times the rate, nothing added above the old Nyquist frequency.

    Args:
        samples: ``[n]``.
        factor: A whole number.

    Returns:
        ``[n * factor]``: its spectrum is that of ``samples``, with zeros above.
    """
    spectrum = np.fft.rfft(samples)
    return np.asarray(np.fft.irfft(spectrum, len(samples) * factor) * factor, np.float32)


@functools.cache
def mel_filters() -> npt.NDArray[np.float64]:
    """Triangles on the mel scale from 0 to 8 kHz, each of area one: ``[80, 201]``."""
    mels = np.linspace(0.0, _hz_to_mel(_RATE / 2), MELS + 2)
    edges = np.array([_mel_to_hz(float(mel)) for mel in mels])
    bins = np.linspace(0.0, _RATE / 2, _FFT // 2 + 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (middle - low), (high - bins) / (high - middle)
    filters = np.maximum(0.0, np.minimum(rising, falling)) * 2 / (high - low)
    return np.asarray(filters, np.float64)


def _hz_to_mel(hz: float) -> float:
    if hz < _KNEE_HZ:
        return hz / _HZ_PER_MEL
    return _KNEE_HZ / _HZ_PER_MEL + math.log(hz / _KNEE_HZ) / _LOG_STEP


def _mel_to_hz(mel: float) -> float:
    knee = _KNEE_HZ / _HZ_PER_MEL
    return mel * _HZ_PER_MEL if mel < knee else _KNEE_HZ * math.exp((mel - knee) * _LOG_STEP)


def log_mel(samples: _Floats) -> _Floats:
    """Log-mel spectrogram of 30 seconds, ``[80, 3000]``, as Whisper was trained on.

    Silence fills up the 30 seconds. Power spectra of 25 ms under a periodic Hann window every
    10 ms, the ends mirrored; mel energies to base 10, at most 8 below the highest; then
    ``(x + 4) / 4`` (Radford et al. 2022, section 2.2).
    """
    sound = np.zeros(_SECONDS * _RATE)
    kept = samples[: len(sound)]
    sound[: len(kept)] = kept
    padded = np.pad(sound, _FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FFT)[::_HOP][:FRAMES]
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT) / _FFT)
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    energy = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return np.asarray((np.maximum(energy, energy.max() - 8) + 4) / 4, np.float32)


def words(text: str) -> list[str]:
    """Words to compare: lower case, no punctuation, titles and numbers spelled out.

    A number above twenty is taken for digits read one by one.
    """
    found: list[str] = []
    for word in re.findall(r"[a-z]+(?:'[a-z]+)*|\d+", text.lower()):
        if not word.isdigit():
            found.append(_SPELLED.get(word, word))
        elif int(word) < len(_NUMBERS):
            found.append(_NUMBERS[int(word)])
        else:
            found.extend(_NUMBERS[int(digit)] for digit in word)
    return found


def word_error_rate(truths: Sequence[str], found: Sequence[str]) -> float:
    """Edits of words over the words there are."""
    pairs = [(words(truth), words(text)) for truth, text in zip(truths, found, strict=True)]
    return sum(edit_distance(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
