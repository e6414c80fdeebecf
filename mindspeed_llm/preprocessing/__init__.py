"""Convert raw data into packed files.

    rows ─▶ conversations ─▶ samples ─▶ tokens on disk ─▶ packing plan ─▶ packed files and their manifest

`preprocess(parse_preprocess_arguments(sys.argv[1:]))` runs all steps.
"""

from mindspeed_llm.preprocessing.inputs import name_problems
from mindspeed_llm.preprocessing.merging import merge_packed_files
from mindspeed_llm.preprocessing.pipeline import preprocess

__all__ = ["merge_packed_files", "name_problems", "preprocess"]
