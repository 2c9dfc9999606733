"""`fasttrain profile`: the time of a fine-tuning iteration by phase, beside other implementations.

It uses a recipe's network at its published size with random weights, and synthetic images, so it
needs neither data nor a base model, and measures `fasttrain.training.finetune.train` itself:

- `sizes`: the network to profile (on a CPU a small one, with a note);
- `meter`: clock, memory and ceilings of the device;
- `columns`, `checks`: the implementations compared, and whether they compute the same;
- `step`: the iteration by phase; `operators`: bytes and operations by count;
- `bench`, `table`: the measurement, and its tables.

    result = profile_recipe("imagenet64-d2o-f", ["r1.gamma=0"], device="cuda")

OUT/trace.json is a Chrome trace (https://ui.perfetto.dev) of one iteration of `ours`.
OUT/profile.json holds everything, all times in milliseconds; TIMING is {median_ms, p20_ms, p80_ms,
repetitions}:

    schema          1
    recipe, overrides, notes    the request; a line for each deviation from it
    shrunk          whether the network is smaller than the recipe's
    machine         device, versions, threads, TF32 flags
    configuration   batch, iterations, parameters, dtype, memory_format, kernels, implementation,
                    discriminator_dtype
    settings        all settings, resolved
    method          method of the time measurements
    rates           copy, matrix: TIMING with per_second (bytes or operations) and what
    columns         by name (those of eager, library, library_nchw, compile, ours that exist):
        what, kernels, memory_format, compiled, warm_up_s (with compiling)
        check       relative L2 errors: images, gradient, parts (of the gradient, by name); null is
                    not finite; wrong: names beyond their limit
        generator   forward, backward, total: TIMING; weight_bytes; saved_activation_bytes;
                    peak_bytes_above_weights (null on a CPU); classes: CLASSES of both together
                    (null under torch.compile, whose operators cannot be counted)
        step        time: TIMING of the iteration without R1, peak_bytes_above_standing; or null
    phases          of ours: rows of TIMING with step, phase, every (iterations), amortised_ms,
                    share; sum_ms, measured_ms, difference_ms: with R1 amortised; iteration and
                    iteration_with_r1: TIMING of the whole; r1: TIMING of the R1 step, or
                    null; images_per_second
    classes         CLASSES of an iteration of ours without R1
    model           null, or on a GPU that the speed model knows: gpu, rows (title, floor_ms,
                    expected_ms, measured_ms, amortised) and the same of the iteration
    failed          error by name of column that could not run
    wrong           names of columns with wrong results
    remarks         how to read the numbers
    files           trace, by path

CLASSES has time_ms, calls, bytes, flops in all, and rows: each with class, time_ms, share, calls,
bytes, flops, bytes_per_second, of_copy, flops_per_second, of_matrix (the last four null where there
is nothing to divide).
"""

from fasttrain.analysis.profiling.profile import profile_recipe

__all__ = ["profile_recipe"]
