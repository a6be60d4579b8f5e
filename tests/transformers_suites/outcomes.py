"""A plugin for pytest that runs the tests of transformers' suites alone and writes their outcomes to `$OUTCOMES`."""

import json
import os

import pytest


# Whose tests they are, by the class that defines them.
SUITES = {
    "ModelTesterMixin": "model",
    "ExportTesterMixin": "model",
    "GenerationTesterMixin": "generation",
    "ExportGenerateTesterMixin": "generation",
    "PipelineTesterMixin": "pipeline",
    "ProcessorTesterMixin": "processor",
}


failed = set()  # tests of which a part has failed, which pytest calls passed


def suite_of(test_class: type, name: str) -> str | None:
    """The suite that a test comes from, also where a subclass overrides it; None for tests of no suite."""
    if name == "test_config":
        return "configuration"
    for base in test_class.__mro__:
        if base.__name__ in SUITES and name in vars(base):
            return SUITES[base.__name__]
    return None


def pytest_collection_modifyitems(items):
    items[:] = [item for item in items if suite_of(item.cls, item.name)]
    for item in items:
        item.user_properties.append(("suite", suite_of(item.cls, item.name)))


def pytest_runtest_logreport(report):
    # What is expected to fail has failed.
    outcome = "failed" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    if outcome == "failed":
        failed.add(report.nodeid)
    # Neither a part of a test, nor the passing steps before and after it.
    if type(report) is not pytest.TestReport or (report.when != "call" and report.passed):
        return
    suite = dict(report.user_properties)["suite"]
    model, name = report.nodeid.split("::")[-2:]
    row = {"model": model, "suite": suite, "name": name, "outcome": "failed" if report.nodeid in failed else outcome}
    with open(os.environ["OUTCOMES"], "a", encoding="utf-8") as file:
        print(json.dumps(row), file=file)
