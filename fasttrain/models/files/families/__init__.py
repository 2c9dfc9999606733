"""Other people's models: a file a family, from their names and numbers to a network of ours."""
