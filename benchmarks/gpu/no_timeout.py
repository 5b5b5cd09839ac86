"""A pytest plugin for machines without pytest-timeout, whose option pyproject.toml sets."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Accept the option and the marker's command line, and do nothing with them."""
    parser.addini("timeout", "ignored: pytest-timeout is not installed")


def pytest_configure(config: pytest.Config) -> None:
    """Accept the marker."""
    config.addinivalue_line("markers", "timeout(seconds): ignored")
