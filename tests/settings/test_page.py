"""Each setting is set by a recipe, a benchmark or a test of what it does (docs/settings.md)."""

from __future__ import annotations

from tests.settings_page import ROOT, page, settings, uses


def test_no_setting_is_there_that_nothing_sets() -> None:
    used = uses()
    unused = [setting.paths[0] for setting in settings() if not any(map(used.get, setting.paths))]
    assert not unused, "give each a recipe, a measured row or a test of what it does, or remove it"


def test_every_setting_but_the_networks_says_what_it_means() -> None:
    silent = {setting.paths[0] for setting in settings() if not setting.meaning}
    assert {path for path in silent if not path.startswith("network.")} == set()


def test_the_page_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert text == page(), "run: python -m tests.settings_page > docs/settings.md"
