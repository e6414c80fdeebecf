"""`preprocess_data.py inspect`: show one pack of packed files, on the terminal or as an HTML page. Imports no torch."""

from mindspeed_llm.pack_viewer.inspect_command import inspect_pack

__all__ = ["inspect_pack"]
