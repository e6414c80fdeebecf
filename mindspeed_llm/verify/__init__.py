"""Compare a model in this project with the same model in transformers, on the user's own data.

    python -m mindspeed_llm.verify --load HF_DIR --data-path PREFIX [layout flags] [--packs 2]

verify_arguments    the command line
comparison_run      both sides one after the other, and the comparison
own_model           load the model of this project, on its parallel layout
own_recorder        run it and record what it computes
rank_zero_tensors   parts of tensors on all ranks → full tensors on rank 0
reference           the model of transformers, with peft for an adapter
samples             the samples of the first packs, without the code of training
layer_taps          hidden states between the layers of both models
recording           what one side computed
tensor_folder       tensors on disk
comparison          rows of the table
limits              differences that rounding explains
diagnosis           the first difference, and what its pattern usually means
template_check      chat template of the data and of an export
memory_need         memory and disk (--dry-run)
report              the table
"""
