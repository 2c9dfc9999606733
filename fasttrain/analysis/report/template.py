"""The pages' templates, which share one style sheet, and how they write numbers.

html = template("page.html.j2").render(...)
"""

from __future__ import annotations

from importlib import resources

import jinja2

from fasttrain.analysis.report.charts import ROWS

__all__ = ["duration", "number", "template"]


def template(name: str) -> jinja2.Template:
    """A template of this folder: everything is escaped, and an unknown name is an error."""
    folder = resources.files("fasttrain").joinpath("analysis/report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda file: folder.joinpath(file).read_text("utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "duration": duration, "colour": ROWS.__getitem__}
    return environment.get_template(name)


def number(value: float) -> str:
    """Three significant digits, whole thousands: 0.00123, 24.5, 266, 12,345."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """48 s; 1 min 32 s; 3 h 5 min; 2 d 4 h."""
    whole = round(seconds)
    for unit, name, below, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // below} {smaller}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
