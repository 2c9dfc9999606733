"""The kernel variants that the published networks use, one file an op.

Each file has `variants() -> Iterator[Variant]`; `benchmarks.aot` compiles them all.
"""
