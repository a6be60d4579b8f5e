"""Whether a test notices a mutant."""

import os

import pytest


class Judge:
    """
    A pytest plugin that runs tests in a given order, up to the first that fails, for so many seconds of CPU time.

    Args:
        tests: How many seconds each takes.
    """

    def __init__(self, tests: dict[str, float], cpu_seconds: float):
        self.tests, self.cpu_seconds = tests, cpu_seconds
        self.killer, self.reason, self.num_run = None, None, 0

    def start(self) -> None:
        pass

    def pytest_sessionstart(self, session):
        self.session = session

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        ranks = {test: rank for rank, test in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in ranks), key=lambda item: ranks[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(60 + 10 * self.tests[item.nodeid]))

    def pytest_collectreport(self, report):
        self.pytest_runtest_logreport(report)

    def pytest_runtest_logreport(self, report):
        if report.failed and self.killer is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.killer, self.reason = report.nodeid, str(crash.message if crash else report.longrepr)[:200]

    def pytest_runtest_logfinish(self):
        self.num_run += 1
        self.session.shouldfail = self.killer is not None and "killed"
        if sum(os.times()[:4]) > self.cpu_seconds:
            self.session.shouldstop = "the time is up"

    def finish(self, status: int) -> dict:
        if status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
            self.killer = self.killer or "start of pytest"
        return {
            "outcome": "survived" if self.killer is None else "killed",
            "by": self.killer,
            "reason": self.reason,
            "num_run": self.num_run,
            "num_tests": len(self.tests),
            "cpu_seconds": round(sum(os.times()[:4]), 1),
        }
