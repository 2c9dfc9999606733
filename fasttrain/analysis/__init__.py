"""Looking at runs and recipes: the report, profiles, plans."""
