"""The command line, see the package's docstring."""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from .pool import Pool
from .report import score, summary
from .selection import Selection
from .sites import Mutant, draw
from .steps import judge, record


HERE = Path(__file__).parent.name


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--mutants", type=int, default=220, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--cpu-seconds", type=float, default=300, help="for a mutant's tests; default: %(default)s")
    parser.add_argument("--files", nargs="+", default=["src/mqt_llava/models/*.py", "src/mqt_llava/training/*.py"])
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files or folders; default: all")
    parser.add_argument("--folder", type=Path, help="default: runs/mutation/COMMIT")
    args = parser.parse_args()

    root = Path.cwd()
    folder = args.folder or root / "runs" / "mutation" / git("rev-parse", "--short", "HEAD")[0]
    folder.mkdir(parents=True, exist_ok=True)
    sources = git("ls-files", *args.files)
    tests = [file for file in git("ls-files", *args.tests) if fnmatch(file, "*/test_*.py") and HERE not in file]
    path = folder / f"mutants_{args.seed}_{args.mutants}.json"
    if not path.exists():
        drawn = draw(root, sources, args.mutants, args.seed)
        path.write_text(json.dumps([asdict(mutant) for mutant in drawn], indent=1))
    mutants = [Mutant(**one) for one in json.loads(path.read_text())]
    with Pool(root, folder, args.workers, tests) as pool:
        selection = Selection(root, record(pool, folder / "recorded", sources, tests))
        results = judge(pool, path.with_name(f"results_{path.stem}.jsonl"), mutants, selection, args.cpu_seconds)
    print(summary(results))
    return 0 if score(results) >= 95 else 1


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
