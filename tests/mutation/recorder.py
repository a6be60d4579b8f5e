"""Which test executes which line."""

import importlib
import os
import time
from pathlib import Path

import coverage
import pytest


class Recorder:
    """
    A pytest plugin that records the lines of the sources that each test executes, also in processes that it starts.

    What a fixture of a wider scope executes counts for every test that uses it, not only for the first; what is
    executed when a file is collected counts for the test "", and what every import executes for none.
    """

    def __init__(self, sources: list[str], scratch: Path):
        self.sources, self.folder = sources, scratch / "coverage"
        self.seconds, self.passed, self.failed, self.users = {}, [], [], {}

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
        self.switch("import")
        for source in self.sources:
            importlib.import_module(source.removeprefix("src/").removesuffix(".py").replace("/", "."))
        self.switch("")

    def switch(self, context: str) -> None:
        os.environ["TEST_CONTEXT"] = context
        self.coverage.switch_context(context)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        for name in item.fixturenames:
            self.users.setdefault(f"fixture {name}", []).append(item.nodeid)
        self.switch(item.nodeid)
        begun = time.monotonic()
        result = yield
        self.seconds[item.nodeid] = time.monotonic() - begun
        self.switch("")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        before = os.environ["TEST_CONTEXT"]
        if fixturedef.scope != "function":
            self.switch(f"fixture {fixturedef.argname}")
        try:
            return (yield)
        finally:
            self.switch(before)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.passed and report.when == "call":
            self.passed.append(report.nodeid)

    def finish(self, status: int) -> dict:
        self.coverage.stop()
        self.coverage.save()
        lines = {source: {} for source in self.sources}
        for path in self.folder.glob("data*"):
            data = coverage.CoverageData(str(path))
            data.read()
            for measured in data.measured_files():
                by_line = next(lines[source] for source in self.sources if measured.endswith(source))
                for line, contexts in data.contexts_by_lineno(measured).items():
                    tests = {test for context in contexts for test in self.users.get(context, [context])}
                    by_line[line] = sorted(tests.union(by_line.get(line, [])))
        seconds = {test: self.seconds[test] for test in self.passed if test not in self.failed}
        return {"seconds": seconds, "failed": self.failed, "lines": lines}
