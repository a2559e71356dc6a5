"""The command line: arguments in, one public call, text out."""

import sys

import click

from bvdm_data.cli.commands import bench, evaluate, export, fetch, fit, info, preview, shards


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
        click.echo(f"bvdm-data: {_one_line(error)}", err=True)
        sys.exit(1)


def _one_line(error: Exception) -> str:
    """Return the words of an error; of one that a loader's worker met, without its traceback."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if any(line.startswith("Original Traceback") for line in lines):
        return lines[-1].partition(": ")[2] or lines[-1]
    return " ".join(line.strip() for line in lines)
