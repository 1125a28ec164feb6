"""Codecs and side doors of serving engines: sans-IO, one file per wire protocol, differences as data."""
