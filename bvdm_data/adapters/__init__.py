"""Adapters: clips in the forms that other packages eat, each imported only when it is used.

A module needs no more than the package it is for, which an extra of the same purpose installs.
"""
