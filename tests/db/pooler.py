"""A stand-in for PgBouncer and its like, as far as the start of a session goes: no test needs the real one."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Literal
from urllib.parse import urlsplit

Fate = Literal["refused", "dropped", "passed"]
_ENCRYPTION = (80877103, 80877104)  # SSLRequest, GSSENCRequest
_REFUSAL = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"  # as PgBouncer says it


class Pooler:
    """Between a client and the server of `dsn`.

    options  what becomes of the settings that a client asks for its session: PgBouncer refuses them, or drops them if
             its administrator told it to ignore them; "passed": there is no pooler any more
    sent     all that clients have sent after the start
    starts   released by each client that comes
    """

    def __init__(self, dsn: str, options: Fate) -> None:
        port = urlsplit(dsn).port or 5432
        self.options = options
        self.sent = bytearray()
        self.starts = threading.Semaphore(0)
        self._target = ("127.0.0.1", port)
        self._sockets = [socket.create_server(("127.0.0.1", 0))]
        self.dsn = dsn.replace(f":{port}/", f":{self._sockets[0].getsockname()[1]}/")
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._sockets[0].accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            self._sockets += [client, server]
            code, parameters = self._read_start(client)
            self.starts.release()
            if b"options" in parameters and self.options == "refused":
                client.sendall(b"E" + struct.pack("!i", len(_REFUSAL) + 4) + _REFUSAL)
                return
            if self.options == "dropped":
                parameters.pop(b"options", None)
            body = b"".join(name + b"\0" + value + b"\0" for name, value in parameters.items()) + b"\0"
            server.sendall(struct.pack("!ii", len(body) + 8, code) + body)
            threading.Thread(target=self._answer, args=(server, client), daemon=True).start()
            while data := client.recv(1 << 16):
                self.sent += data
                server.sendall(data)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)

    def _read_start(self, client: socket.socket) -> tuple[int, dict[bytes, bytes]]:
        while True:
            length, code = struct.unpack("!ii", client.recv(8, socket.MSG_WAITALL))
            body = client.recv(length - 8, socket.MSG_WAITALL)
            if code not in _ENCRYPTION:
                words = body.split(b"\0")
                return code, dict(zip(words[:-2:2], words[1:-1:2], strict=False))
            client.sendall(b"N")
