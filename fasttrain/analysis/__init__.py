"""Analysis of runs and recipes: the report, profiles, plans."""
