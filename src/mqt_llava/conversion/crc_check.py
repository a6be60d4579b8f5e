"""
Whether the files that weights were read from are as they were written.

Weights are read by mapping, which leaves the checksums of a file alone. torch's zip files hold a CRC of each of their
records; safetensors and torch's format from before 1.6 hold none, so that nothing can be said about those.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from .checkpoint_reader import ZIP
from .conversion_error import ConversionError, blaming
from .input_files import starts_with


def check_crcs(files: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """
    Reads every file that holds CRCs as a whole.

    Returns:
        The files whose CRCs are right, and those that hold none.

    Raises:
        ConversionError: A file is damaged.
    """
    right, without = [], []
    for file in files:
        if not starts_with(file, ZIP):
            without.append(file)
            continue
        with blaming(f"--check: {file} is damaged"), zipfile.ZipFile(file) as archive:
            # torch can be told to leave them out, and then writes zeros.
            if not any(record.CRC for record in archive.infolist()):
                without.append(file)
                continue
            damaged = archive.testzip()
            if damaged is not None:
                raise ConversionError(
                    f"--check: {file} is damaged: its record {damaged} is not what its CRC says. Fetch it again."
                )
        right.append(file)
    return right, without


def crc_report(files: Iterable[Path]) -> list[str]:
    """`check_crcs` as lines to print."""
    right, without = check_crcs(files)
    lines = []
    if right:
        lines.append(f"Checked: the CRCs in {', '.join(map(str, right))} are right.")
    if without:
        lines.append(
            f"Not checked for damage: {', '.join(map(str, without))}. The format holds no CRCs: neither safetensors "
            "nor torch's from before 1.6 does."
        )
    return lines
