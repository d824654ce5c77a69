"""Decoder-only language models, written straight into the IR with a key-value cache.

No tracing: a table says what distinguishes the families, one builder emits the runtime's own
operators, and weights stay in their files until they are asked for.
"""

from qcompiler.frontends.decoder.door import is_decoder, open_folder, open_gguf, open_pretrained

__all__ = ["is_decoder", "open_folder", "open_gguf", "open_pretrained"]
