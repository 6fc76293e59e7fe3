"""Compiles files of Python.

Standard input: for each file three paths, each ended by NUL: where its source is, what it is called
where it will run, and where its compiled code goes. What does not compile is left out, as pip does:
packages have tests and templates for other Pythons. No code of the files is run.
"""

import sys
from importlib.util import MAGIC_NUMBER
from marshal import dumps

paths = sys.stdin.buffer.read().split(b"\0")[:-1]
for source, shown, target in zip(paths[::3], paths[1::3], paths[2::3]):
    with open(source, "rb") as file:
        text = file.read()
    shown = shown.decode("utf-8", "surrogateescape")
    try:
        code = dumps(compile(text, shown, "exec", dont_inherit=True, optimize=0))
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        continue
    with open(target, "wb") as file:
        # The fields of the header that tell whether it fits its source are filled in elsewhere.
        file.write(MAGIC_NUMBER + bytes(12) + code)
