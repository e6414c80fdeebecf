"""Files on the disk: reading, hashing, writing atomically, and the layout of a checkpoint directory; no torch.

opening            open files that may come from strangers
decoding           parsed JSON as dataclasses, checked
hashing            size and SHA-256 of files
atomic             replace a file as a whole
streaming          write and read files larger than memory past the file cache
disk_errors        errors of the operating system as errors with a way out
checkpoint_folder  names and tracker of a checkpoint directory, and what a stop may leave
checkpoint_files   files.json: size and SHA-256 of every file of a checkpoint
"""
