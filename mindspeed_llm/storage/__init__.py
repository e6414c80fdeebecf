"""Files on disk: open, hash, write atomically, and the layout of a checkpoint directory. Imports no torch.

safe_open             open files from untrusted sources
json_dataclass        decode parsed JSON into dataclasses, with checks
hashing               size and SHA-256 of files
atomic_write          replace a file or a directory atomically
uncached_file         write and read files larger than memory without filling the page cache
disk_errors           turn errors of the operating system into errors that tell the user what to do
checkpoint_directory  names and tracker of a checkpoint directory, and the leftovers of an interrupted save
hub_names             advice for the name of a model on the Hugging Face Hub in place of a directory
checkpoint_file_list  files.json: size and SHA-256 of every file of a checkpoint
"""
