"""What the commands have in common: their arguments, and the ends that they come to."""

import argparse
import errno
import sys

from .checkpoint_kinds import CheckpointKind
from .configs_llava import DTYPES
from .conversion_error import ConversionError, one_line
from .conversion_steps import Conversion, convert
from .shard_writer import parse_size


def main(conversion: Conversion, description: str, argv: list[str] | None = None) -> None:
    """Runs the command line; an error that the user can mend ends it with a message and exit status 1."""
    args = parse_arguments(conversion.kind, description, argv)
    try:
        convert(conversion, args)
    except ConversionError as error:
        sys.exit(one_line(f"error: {error}"))
    except Exception as error:
        if is_disk_full(error):
            sys.exit(f"error: The disk is full: {args.output} could not be written, and nothing was left behind.")
        if not isinstance(error, OSError):
            raise
        sys.exit(one_line(f"error: {error}"))


def parse_arguments(kind: CheckpointKind, description: str, argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description.split("\n\n")[0],
        epilog=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = "DIR_OR_HUB_ID"
    parser.add_argument("--input", required=True, metavar=place, help="original checkpoint")
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of --input on the Hub")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--vision-tower", metavar=place, help="default: `mm_vision_tower` of the original config")
    parser.add_argument("--language-model", metavar=place, help=f"for a stage-1 {kind.stage_1_file}")
    parser.add_argument("--dtype", choices=DTYPES, help="default: the original's")
    parser.add_argument("--push-to-hub", metavar="ID", help="upload the result into this model repository")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an output folder that a conversion wrote, once the new one is finished",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="read the CRCs of the original's .bin files, and compare every written tensor with its source",
    )
    parser.add_argument("--max-shard-size", default="2GB", metavar="SIZE", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        args.max_shard_size = parse_size(args.max_shard_size)
    except ValueError as error:
        parser.error(f"--max-shard-size: {error}")
    return args


def is_disk_full(error: Exception) -> bool:
    # Libraries that are written in Rust raise it as a plain exception.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
