"""The paper's experiments as commands: `fasttrain analyze`. Measuring functions, which know no run;
experiments, which make their runs in a `Lab`; and the page of their results."""
