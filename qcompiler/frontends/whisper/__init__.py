"""Whisper, written as two graphs: an encoder of sound, and a decoder with a key-value cache."""

from qcompiler.frontends.whisper.door import is_whisper, open_folder, open_pretrained

__all__ = ["is_whisper", "open_folder", "open_pretrained"]
