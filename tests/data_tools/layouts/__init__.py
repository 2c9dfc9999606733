"""Public data sets as their publishers pack them, made small: `LAYOUTS` has a row for each way to
convert one, with the class and the first pixel of every image that must come out."""

from tests.data_tools.layouts import arrays, files
from tests.data_tools.layouts.packing import LAYOUTS, Layout

__all__ = ["LAYOUTS", "Layout", "arrays", "files"]
