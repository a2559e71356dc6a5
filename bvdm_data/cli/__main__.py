"""Runs the command line: ``python -m bvdm_data.cli``."""

from bvdm_data.cli import main

main()
