"""Protocols of what the slices need from outside, each with a public fake in :mod:`tokenweir.ports.fakes`."""
