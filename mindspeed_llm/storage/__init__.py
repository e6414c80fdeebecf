"""Files on the disk: reading, hashing, writing atomically, and the layout of a checkpoint directory; no torch.

opening            open files that may come from strangers
checkpoint_files   files.json: size and SHA-256 of every file of a checkpoint
"""
