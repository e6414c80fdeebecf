"""Raw data to packed files, from one end to the other.

rows ─ conversations ─ samples ─ tokens on disk ─ plan ─ packed files and their manifest

preprocess(parse_preprocess(sys.argv[1:]))
"""

from mindspeed_llm.preprocessing.merging import merge_packed_files
from mindspeed_llm.preprocessing.pipeline import preprocess

__all__ = ["merge_packed_files", "preprocess"]
