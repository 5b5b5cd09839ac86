"""The limit against hangs. Tests pass where everything is slow, so a shorter time is no limit."""

HANG_SECONDS = 800
"""For a child process: below a test's own limit in pyproject.toml, so that its output is shown."""
