"""The speed model: what an iteration of a fine-tuning costs on a GPU that need not be there.

- `networks`: a recipe's networks without weights; `phases`: the passes of an iteration
- `trace`: what a pass launches, on the meta device: bytes and operations
- `keys`, `issued.json`: instructions of our compiled kernels; `rates`: what a GPU can do
- `costs`: seconds of a launch; `model`: of an iteration

    model = expect(settings, GPUS["h200"], images=128)
    model["iteration"]["seconds"]
"""
