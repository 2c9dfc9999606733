"""This process and machine: processes, files, signals, errors."""
