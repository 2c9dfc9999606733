"""Networks, their freezing, and every file format of a model."""
