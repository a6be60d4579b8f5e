"""What pytest is told in a worker: to record which test executes which line, or to judge a mutant."""

import os
import time
from pathlib import Path

import coverage
import pytest


class Recorder:
    """
    Records the lines of the sources that each test executes, also in processes that it starts.

    What a fixture of a wider scope executes counts for every test that uses it, not only for the first; what is executed
    when the file is collected counts for the test "".
    """

    def __init__(self, sources: list[str], scratch: Path):
        self.sources, self.folder = sources, scratch / "coverage"
        self.seconds, self.failed, self.fixtures = {}, [], {}

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            path.unlink()
        config = self.folder / "config"
        include = ",".join(f"*/{source}" for source in self.sources)
        config.write_text(
            f"[run]\ndata_file={self.folder / 'data'}\nparallel=true\ncontext=${{TEST_CONTEXT}}\ninclude={include}\n"
        )
        os.environ.update(COVERAGE_PROCESS_START=str(config), TEST_CONTEXT="")
        self.coverage = coverage.Coverage(config_file=str(config), context="")
        self.coverage.start()

    def switch(self, context: str) -> None:
        os.environ["TEST_CONTEXT"] = context
        self.coverage.switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        defs = [one for many in item._fixtureinfo.name2fixturedefs.values() for one in many]
        self.fixtures[item.nodeid] = [self.context_of(one) for one in defs if one.scope != "function"]
        self.test = item.nodeid
        self.switch(item.nodeid)
        begun = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - begun
        self.switch("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        before = os.environ["TEST_CONTEXT"]
        self.switch(self.context_of(fixturedef))
        try:
            return (yield)
        finally:
            self.switch(before)

    def context_of(self, fixturedef) -> str:
        return f"fixture {fixturedef.baseid} {fixturedef.argname}"

    def pytest_runtest_logreport(self, report):
        if report.failed or report.skipped:
            self.failed.append((report.nodeid, report.outcome))

    def finish(self, status) -> dict:
        self.coverage.stop()
        self.coverage.save()
        users = {}
        for test, contexts in self.fixtures.items():
            for context in contexts:
                users.setdefault(context, []).append(test)
        lines = {}
        for path in self.folder.glob("data*"):
            data = coverage.CoverageData(str(path))
            data.read()
            for measured in data.measured_files():
                source = next(source for source in self.sources if measured.endswith(source))
                for line, contexts in data.contexts_by_lineno(measured).items():
                    tests = lines.setdefault(source, {}).setdefault(line, set())
                    for context in contexts:
                        tests.update(users.get(context, [context] if context in self.seconds else [""]))
        lines = {source: {line: sorted(tests) for line, tests in by.items()} for source, by in lines.items()}
        return {"status": int(status), "seconds": self.seconds, "not_passed": self.failed, "lines": lines}


class Judge:
    """
    Runs tests in a given order, up to the first that fails, for so many seconds of CPU time.

    Args:
        tests: How long each takes.
    """

    def __init__(self, tests: dict[str, float], cpu_seconds: float):
        self.tests, self.cpu_seconds = tests, cpu_seconds
        self.killer, self.reason, self.num_run = None, None, 0

    def start(self) -> None:
        self.ranks = {test: rank for rank, test in enumerate(self.tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        asked = [item for item in items if item.nodeid in self.ranks]
        items[:] = sorted(asked, key=lambda item: self.ranks[item.nodeid])
        for item in items:
            item.add_marker(pytest.mark.timeout(60 + 10 * self.tests[item.nodeid]))

    def pytest_collectreport(self, report):
        if report.failed:
            self.note(report)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.note(report)
        self.num_run += report.when == "call"

    def note(self, report) -> None:
        if self.killer is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            self.killer, self.reason = report.nodeid, str(crash.message if crash else report.longrepr)[:200]

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid):
        self.session.shouldfail = self.killer and "killed"
        if sum(os.times()[:4]) > self.cpu_seconds:
            self.session.shouldstop = "the time is up"

    def pytest_sessionstart(self, session):
        self.session = session

    def finish(self, status) -> dict:
        # Statuses above 2 and 5 (no tests): pytest itself, or a conftest, cannot start.
        if self.killer is None and status in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
            self.killer = "start of pytest"
        outcome = "survived" if self.killer is None else "killed"
        cpu_seconds = round(sum(os.times()[:4]), 1)
        return {
            "outcome": outcome, "by": self.killer, "reason": self.reason, "num_run": self.num_run,
            "num_tests": len(self.tests), "cpu_seconds": cpu_seconds,
        }  # fmt: skip
