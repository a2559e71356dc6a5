"""Runs the command line: ``python -m bvdm_data``."""

from bvdm_data.cli import main

main()
