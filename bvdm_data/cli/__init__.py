"""The command line: arguments in, one public call, text out."""

import sys

import click

from bvdm_data.cli.clips import bench, export, fetch, preview, shards
from bvdm_data.cli.models import evaluate, fit, info


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="bvdm-data")
def cli() -> None:
    """Annotated live-cell video clips, synthesised while you train."""


for _command in (fit, info, preview, export, shards, evaluate, bench, fetch):
    cli.add_command(_command)


def main() -> None:
    """Run the command line; errors of the user are one line, not a traceback."""
    try:
        cli()
    except (ValueError, TypeError, OSError, IndexError, ImportError, MemoryError) as error:
        click.echo(f"bvdm-data: {_shorten(error)}", err=True)
        sys.exit(1)


def _shorten(error: Exception) -> str:
    """Return the message of an error; of one from a loader's worker, without its traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if any(line.startswith("Original Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(line.strip() for line in lines)
