"""`fasttrain report`: one HTML page with pictures, curves, numbers and settings of a run."""
