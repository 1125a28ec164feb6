"""The outside services that Tokenweir can use, started on this machine: ``python -m deploy.services start``.

A container engine runs ``deploy/compose.yaml`` where there is one; elsewhere the same services run as processes of
their own, on loopback and on free ports. Tests use this package through the fixtures of ``tests/services``.
"""
