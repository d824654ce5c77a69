"""What Whisper hears, and how its words are counted."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler_models import speech


def tone(hz: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def test_upsampling_keeps_a_tone_and_adds_nothing_above() -> None:
    found = speech.upsample(tone(1000, 8000, 0.5), 2)
    np.testing.assert_allclose(found, tone(1000, 16000, 0.5), atol=1e-5)
    spectrum = np.abs(np.fft.rfft(found))
    assert spectrum[len(spectrum) // 2 + 1 :].max() < 1e-3


def test_mel_filters_peak_where_the_scale_says() -> None:
    filters = speech.mel_filters()
    assert filters.shape == (80, 201)
    peaks = filters.argmax(axis=1) * 40.0  # Hz
    assert (np.diff(peaks) >= 0).all()
    area = filters.sum(axis=1)[40:] * 40  # wide ones: the bins resolve them
    np.testing.assert_allclose(area, 1.0, atol=0.15)


def test_a_tone_lights_up_its_mel_band_until_it_ends() -> None:
    found = speech.log_mel(tone(1000, 16000, 2.0))
    assert found.shape == (80, 3000)
    assert found.dtype == np.float32
    band = speech.mel_filters()[:, 25].argmax()  # bin 25 is 1000 Hz
    assert found[:, 50].argmax() == band
    assert found.max() - found.min() <= 2.0 + 1e-6  # 8 decades over 4
    assert (found[:, 210:] == found.min()).all()


def test_features_are_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    samples = (tone(440, 16000, 3.0) + 0.1 * tone(3000, 16000, 3.0)).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor()
    wanted = extractor(samples, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(speech.log_mel(samples), wanted, atol=1e-4)


def test_words_are_compared_without_case_points_and_digits() -> None:
    assert speech.words("Mr. Smith, press 10 - don't!") == [
        "mister", "smith", "press", "ten", "don't",
    ]  # fmt: skip
    assert speech.words("55") == ["five", "five"]


def test_word_error_rate_counts_edits_over_all_words() -> None:
    assert speech.word_error_rate(["a b c", "d"], ["a x c", "d e"]) == pytest.approx(2 / 4)
    assert speech.word_error_rate(["Ten of clubs."], ["10 of clubs"]) == 0.0
