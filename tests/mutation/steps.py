"""What a run consists of: recording the tests, and judging the mutants by them. Both go on where they were stopped."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

from .pool import Pool
from .selection import Selection
from .sites import Mutant


def record(pool: Pool, folder: Path, sources: list[str], tests: list[str]) -> list[dict]:
    """Which lines each test executes, by test file."""
    folder.mkdir(exist_ok=True)
    paths = {file: folder / (file.replace("/", "__") + ".json") for file in tests}

    def record_file(file: str) -> None:
        answer = pool.ask("record", file=file, sources=sources)
        part = paths[file].with_suffix(".part")
        part.write_text(json.dumps(answer))
        part.replace(paths[file])
        print(f"recorded {file}: {len(answer['seconds'])} tests, {sum(answer['seconds'].values()):.0f} s", flush=True)

    pool.map(record_file, [file for file, path in paths.items() if not path.exists()])
    records = [json.loads(path.read_text()) for path in paths.values()]
    for test in (test for one in records for test in one["failed"]):
        print(f"judges no mutant, since it fails without: {test}")
    return records


def judge(pool: Pool, path: Path, mutants: list[Mutant], selection: Selection, cpu_seconds: float) -> list[dict]:
    """What became of each mutant."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {key(one) for one in done}
    left = [mutant for mutant in mutants if key(asdict(mutant)) not in known]
    lock, sound = threading.Lock(), set()

    def run(mutant: Mutant, tests: dict[str, float], is_applied: bool = True) -> dict:
        source = (pool.root / mutant.file).read_bytes()
        source = (mutant.apply(source) if is_applied else source).decode()
        return pool.ask("judge", file=mutant.file, source=source, tests=tests, cpu_seconds=cpu_seconds)

    def is_sound(mutant: Mutant, by: str, tests: dict[str, float]) -> bool:
        """Whether the test that fails, behind those in front of it, passes without the mutant."""
        names = list(tests)
        if by not in sound and by in tests:
            as_before = {test: tests[test] for test in names[: names.index(by) + 1]}
            if run(mutant, as_before, is_applied=False)["outcome"] == "killed":
                return False
            sound.add(by)
        return True

    def judge_one(mutant: Mutant) -> None:
        tests = selection.tests(mutant)
        answer = run(mutant, tests)
        while answer["outcome"] == "killed" and not is_sound(mutant, answer["by"], tests):
            print(f"fails without the mutant: {answer['by']}", flush=True)
            tests.pop(answer["by"])
            answer = run(mutant, tests)
        with lock:
            with path.open("a") as file:
                file.write(json.dumps({**asdict(mutant), **answer}) + "\n")
            what = f"{answer['outcome']}, {answer['seconds']} s"
            print(f"{mutant.file}:{mutant.lines[0]} {mutant.operator}: {what}", flush=True)

    pool.map(judge_one, left)
    return [json.loads(line) for line in path.read_text().splitlines()]


def key(mutant: dict) -> tuple:
    return tuple(mutant[name] for name in ("file", "start", "end", "replacement"))
