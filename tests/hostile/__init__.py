"""Data that was made to do harm, and what the readers do with it.

- `files`: pictures, archives and tables byte by byte, sound ones and ones that lie
- `cases`: what a case is
- `pictures`, `folders`, `archives`, `arrays`, `sets`: the cases
- `judge`: feeds a case to the command that a user would run, in a process of its own
- `others`: the same files through `webdataset` and Python's `tarfile`
- `samples`: sound files of each kind
- `readers`: the reader that takes a kind, so that only what is not its own error comes out
- `mutations`: how a sound file becomes another one
- `confined`: a reader in a process that may take so much memory and no more

`python -m benchmarks.data_safety` runs the cases, `python -m tests.hostile.fuzz_readers` mutations.
"""
