"""Plugin of pytest that prints why a test failed as soon as it has.

    python -m pytest -v -p tests.reasons

pytest itself prints its tracebacks at the end, which a run that is cut off does not reach. Under
pytest-xdist the process that collects the results prints.
"""

from __future__ import annotations

import pytest


class Reasons:
    """The lines of failures, each before that of the outcome: the test, a tab and the message."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        message = report.longreprtext if crash is None else crash.message
        self._terminal.write_line(f"REASON {report.nodeid}\t{' '.join(message.split())[:400]}")


# The terminal has to be configured first.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Print where there is a terminal: not in the processes of pytest-xdist."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is not None:
        config.pluginmanager.register(Reasons(terminal))
