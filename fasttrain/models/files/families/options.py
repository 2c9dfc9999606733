"""What a file does not say of its model: the user's `NAME=VALUE`s, and the settings that the
family's own training code recorded.

    options = Options(path, given={"num_heads": "4"}, config={"image_size": 64})
    options.integer("num_heads", why="heads of its attention")
    options.check_used("ADM")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fasttrain.settings.mistakes import did_you_mean
from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import shown

__all__ = ["Options"]

MAX_CONFIG = 1 << 18
"""Bytes."""
_TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


class Options:
    """Values by name, as users or a family's code write them; those of the user win.

    Args:
        path: the model, for messages.
        given: what the user says; each must be one that the family asks for.
        config: the settings of a training; what nobody asks for is left.
    """

    def __init__(
        self,
        path: Path,
        given: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = path
        self.given = dict(given or {})
        self.config = dict(config or {})
        self.asked: list[str] = []

    @classmethod
    def of(
        cls,
        path: Path,
        pairs: Sequence[str] = (),
        config: Path | None = None,
        one_step: bool | None = None,
        sigma: float | None = None,
    ) -> Options:
        """From a command line: `NAME=VALUE`s, a YAML or JSON file, and two options of its own.

        Raises UserError for what is none of it.
        """
        given: dict[str, Any] = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not name:
                raise UserError(f"{shown(pair)}: write it as NAME=VALUE")
            given[name] = value
        given |= {} if one_step is None else {"one_step": one_step}
        given |= {} if sigma is None else {"sigma": sigma}
        if sigma is not None and not one_step:
            raise UserError("--sigma is the noise level of a generator's step: add --one-step")
        return cls(path, given, {} if config is None else _read(config))

    def section(self, *names: str) -> None:
        """Read a part of the config as if it lay at the top; its values win over those there."""
        part: Any = self.config
        for name in names:
            part = part.get(name) if isinstance(part, Mapping) else None
        if isinstance(part, Mapping):
            self.config.update(part)

    def get(self, name: str, default: Any = None) -> Any:
        """As it was written; a value that is None counts as none."""
        self.asked.append(name)
        for source in (self.given, self.config):
            if source.get(name) is not None:
                return source[name]
        return default

    def integer(self, name: str, default: int | None = None, *, why: str = "") -> int:
        return self._converted(name, default, why, _integer, "a whole number")

    def number(self, name: str, default: float | None = None, *, why: str = "") -> float:
        return self._converted(name, default, why, _number, "a number")

    def truth(self, name: str, default: bool | None = None, *, why: str = "") -> bool:
        return self._converted(name, default, why, _truth, "true or false")

    def choice(
        self, name: str, choices: Sequence[str], default: str | None = None, *, why: str = ""
    ) -> str:
        def convert(value: Any) -> str:
            if value not in choices:
                raise ValueError
            return str(value)

        return self._converted(name, default, why, convert, f"one of {', '.join(choices)}")

    def _converted(
        self, name: str, default: Any, why: str, convert: Callable[[Any], Any], what: str
    ) -> Any:
        value = self.get(name, default)
        if value is None:
            raise UserError(
                f"{self.path} does not say {why or name}: `fasttrain import` takes {name}=VALUE "
                f"({what}), or the settings that it was trained with as --config FILE"
            )
        try:
            return convert(value)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{name}={shown(str(value))}: it must be {what}") from None

    def refuse(self, name: str, *allowed: Any, why: str) -> None:
        """Raises UserError when a setting is another than those that are known here."""
        value = self.get(name, allowed[0])
        value = _TRUTHS.get(str(value).lower(), value) if isinstance(allowed[0], bool) else value
        if str(value) not in map(str, allowed):  # on a command line numbers are text
            raise UserError(f"{self.path}: {name}={shown(str(value))} is not known here: {why}")

    def check_used(self, family: str) -> None:
        """Raises UserError for a value of the user's that the family did not ask for."""
        for name in self.given:
            if name not in self.asked:
                raise UserError(
                    f"{shown(name)}: {family} has no such option"
                    f"{did_you_mean(name, sorted(set(self.asked)))}"
                )


def _read(path: Path) -> dict[str, Any]:
    """A config file; JSON is YAML, too."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError
        values = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError, yaml.YAMLError):
        raise UserError(f"{path} is not YAML or JSON of a config") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a table of settings")
    return values


def _integer(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _truth(value: Any) -> bool:
    return _TRUTHS[str(value).lower()] if str(value).lower() in _TRUTHS else _no()


def _no() -> bool:
    raise ValueError
