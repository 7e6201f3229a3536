"""What a person types. One file a command, and each has the same four names, which `gpt.__main__` looks for:

HELP      what the command does, in a line
EXAMPLES  what may follow `python -m gpt NAME`, shown under --help
options   adds the command's own arguments to its parser
run       does it; a ValueError or OSError becomes one line and exit code 2

PyTorch takes a second to load, so these files import it, and what needs it, inside `run`: --help comes at once.
"""
