"""A client of a gateway: submit, wait, stream, cancel, batches; what a lost connection breaks off is read on.

::

    from tokenweir.client import Client

    with Client("http://127.0.0.1:8080", "weir_…") as client:
        request = client.submit(model="good", messages=[{"role": "user", "content": "What is 38 + 47?"}])
        print(client.wait(request).text)
"""

from __future__ import annotations

from tokenweir.client.async_sockets import AsyncSocket
from tokenweir.client.asynchronous import AsyncClient
from tokenweir.client.batches import Batch, BatchResult
from tokenweir.client.options import Options, Tls
from tokenweir.client.results import BatchItem
from tokenweir.client.sockets import Socket
from tokenweir.client.sync import Client
from tokenweir.core.status import RequestStatus, Submitted

__all__ = [
    "AsyncClient",
    "AsyncSocket",
    "Batch",
    "BatchItem",
    "BatchResult",
    "Client",
    "Options",
    "RequestStatus",
    "Socket",
    "Submitted",
    "Tls",
]
