"""The benchmark that runs on a GPU: `bash benchmarks/gpu.sh` calls `python -m benchmarks.gpu`.

- `timing`: medians of functions that run in turns, by the meter of `fasttrain profile`, which also
  says what the machine is and can do
- `case`: an op at a shape: its columns, its bytes and operations, counted
- `norms`, `attention`, `others`: the cases
- `rows`: a case becomes two rows: errors against float64, times, losses
- `parts`: what runs in processes of its own: the kernels' tests, `fasttrain profile`
- `bars`: the acceptance bars, from the rows and the profile
- `table`: the tables in Markdown, and attention's rows as entries of its table of choices
"""
