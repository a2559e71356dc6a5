import pytest

from bvdm_data.validate import Rule, check_fields


class Settings:
    steps = 5
    share = 0.5
    memory = None
    families = True


def test_check_fields_accepts_allowed_values():
    check_fields(
        Settings(),
        steps=Rule(int, 1, 5),
        share=Rule(float, above=0, most=0.5),
        memory=Rule(float, 0, 1, or_none=True),
        families=Rule(bool),
    )
    check_fields(Settings(), steps=Rule(float, least=5))


def test_check_fields_refuses_other_values():
    for name, value, rule, error, words in [
        ("steps", 0, Rule(int, 1, 1000), ValueError, "steps must be from 1 to 1000, got 0"),
        ("steps", True, Rule(int), TypeError, "steps must be an int, got True"),
        ("steps", 1.0, Rule(int), TypeError, "steps must be an int, got 1.0"),
        ("steps", 0, Rule(int, least=1), ValueError, "steps must be at least 1, got 0"),
        ("share", float("nan"), Rule(float, above=0), ValueError, "share must be above 0, got nan"),
        ("share", 2, Rule(float, above=0, most=1), ValueError, "above 0 and at most 1, got 2"),
        ("share", 1, Rule(float, least=0, below=1), ValueError, "from 0 to below 1, got 1"),
        ("share", False, Rule(float), TypeError, "share must be a number, got False"),
        ("share", float("inf"), Rule(float), ValueError, "share must be finite, got inf"),
        ("share", -(10**400), Rule(float), ValueError, r"share must be finite, got -10{38}$"),
        ("share", 99 * [0.5], Rule(float), TypeError, r"a number, got \[0\.5, 0\.5, .*\.\.\.\]$"),
        ("memory", "x", Rule(float, or_none=True), TypeError, "a number or None, got 'x'"),
        ("families", 1, Rule(bool), TypeError, "families must be True or False, got 1"),
    ]:
        settings = Settings()
        setattr(settings, name, value)
        with pytest.raises(error, match=words):
            check_fields(settings, **{name: rule})
