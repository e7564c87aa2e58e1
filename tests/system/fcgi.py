"""FastCGI 1.0, both ends, blocking and small: a client that speaks to the pool without a web server between, and a
responder that stands in for the pool where a test is about the web server. Records are built by plain functions, so
that a test can send half of one, or one that is wrong."""

import http.client
import io
import os
import socket
import struct
import threading

BEGIN, ABORT, END, PARAMS, STDIN, STDOUT, STDERR, DATA, GET_VALUES, GET_VALUES_RESULT, UNKNOWN = range(1, 12)
RESPONDER, KEEP_CONN = 1, 1
RECORD_MAX_BYTES = 65535


def record(kind, content=b"", request_id=1):
    return struct.pack(">BBHHBx", 1, kind, request_id, len(content), 0) + content


def stream(kind, data, request_id=1, record_bytes=RECORD_MAX_BYTES):
    """`data` as records of at most `record_bytes`, and the empty record that ends a stream."""
    pieces = [data[i:i + record_bytes] for i in range(0, len(data), record_bytes)]
    return b"".join(record(kind, piece, request_id) for piece in pieces + [b""])


def pairs(values):
    def length(n):
        return struct.pack(">B", n) if n < 128 else struct.pack(">L", n | 0x80000000)

    encoded = [(str(k).encode(), v if isinstance(v, bytes) else str(v).encode()) for k, v in values.items()]
    return b"".join(length(len(k)) + length(len(v)) + k + v for k, v in encoded)


def begin(keep_conn=False, role=RESPONDER, request_id=1):
    return record(BEGIN, struct.pack(">HB5x", role, KEEP_CONN if keep_conn else 0), request_id)


def environment(method, uri, body=b"", headers=None, **params):
    """The parameters a web server sends for this request; `params` adds to them or, with None, takes one away."""
    path, _, query = uri.partition("?")
    env = {"GATEWAY_INTERFACE": "CGI/1.1", "SERVER_PROTOCOL": "HTTP/1.1", "REQUEST_METHOD": method,
           "REQUEST_URI": uri, "DOCUMENT_URI": path, "SCRIPT_NAME": path, "QUERY_STRING": query,
           "REMOTE_ADDR": "127.0.0.1", "CONTENT_LENGTH": str(len(body)) if body else ""}
    for name, value in (headers or {}).items():
        name = name.upper().replace("-", "_")
        env[name if name == "CONTENT_TYPE" else "HTTP_" + name] = value
    env.update(params)
    return {k: v for k, v in env.items() if v is not None}


def request(method, uri, body=b"", headers=None, keep_conn=False, request_id=1, record_bytes=RECORD_MAX_BYTES,
            **params):
    """A whole request as bytes."""
    return (begin(keep_conn, request_id=request_id)
            + stream(PARAMS, pairs(environment(method, uri, body, headers, **params)), request_id, record_bytes)
            + stream(STDIN, body, request_id, record_bytes))


class Answer:
    """What came back: `status`, `headers` (case does not matter), `body`, `stderr`."""

    def __init__(self, stdout, stderr, app_status, protocol_status):
        self.stderr, self.app_status, self.protocol_status = stderr, app_status, protocol_status
        text = io.BytesIO(stdout)
        self.headers = http.client.parse_headers(text) if stdout else http.client.HTTPMessage()
        self.body = text.read()
        self.status = int(self.headers.get("Status", "200").split()[0])


class Connection:
    """One connection, from either end."""

    def __init__(self, sock):
        self.sock = sock

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def read(self, size):
        data = b""
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError(f"connection closed after {len(data)} of {size} bytes")
            data += piece
        return data

    def read_record(self):
        """(kind, request id, content); EOFError when the other end has closed."""
        _, kind, request_id, size, padding = struct.unpack(">BBHHBx", self.read(8))
        content = self.read(size)
        self.read(padding)
        return kind, request_id, content


class Client(Connection):
    """A web server's end. `address` is the path of a unix socket or (host, port)."""

    def __init__(self, address, timeout_s=10):
        family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
        super().__init__(socket.socket(family, socket.SOCK_STREAM))
        self.sock.settimeout(timeout_s)
        self.sock.connect(address if isinstance(address, tuple) else os.fspath(address))

    def request(self, method, uri, body=b"", **more):
        self.send(request(method, uri, body, **more))
        return self.receive()

    def receive(self):
        out = {STDOUT: b"", STDERR: b""}
        while True:
            kind, _, content = self.read_record()
            if kind == END:
                return Answer(out[STDOUT], out[STDERR], *struct.unpack(">LB3x", content))
            out[kind] += content

    def closed_by_peer(self):
        """Waits, up to the timeout, for the other end to close; what it sends before that is dropped."""
        try:
            while self.sock.recv(65536):
                pass
        except ConnectionResetError:
            pass
        except socket.timeout:
            return False
        return True


def ask(address, method, uri, body=b"", **more):
    """One request on a connection of its own."""
    with Client(address) as client:
        return client.request(method, uri, body, **more)


class Responder:
    """Stands in for the pool: answers each request with `answer(params, body)`, the bytes of a CGI answer; None closes
    the connection without one. `seen` keeps (params, body) of every request, in order; `connections` counts."""

    def __init__(self, path, answer):
        self.answer, self.seen, self.connections = answer, [], 0
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(os.fspath(path))
        self.listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self.listener.close()

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        with Connection(sock) as peer:
            try:
                while self._serve_one(peer):
                    pass
            except (EOFError, OSError):
                pass

    def _serve_one(self, peer):
        streams, keep_conn = {PARAMS: b"", STDIN: b""}, False
        while True:
            kind, request_id, content = peer.read_record()
            if kind == BEGIN:
                keep_conn = bool(content[2] & KEEP_CONN)
            elif kind in streams:
                streams[kind] += content
                if kind == STDIN and not content:
                    break
        params = unpack(streams[PARAMS])
        self.seen.append((params, streams[STDIN]))
        answer = self.answer(params, streams[STDIN])
        if answer is None:
            return False
        peer.send(stream(STDOUT, answer, request_id) + record(END, bytes(8), request_id))
        return keep_conn


def unpack(data):
    """The inverse of pairs()."""
    values, at = {}, 0

    def length():
        nonlocal at
        size = 1 if data[at] < 128 else 4
        n = int.from_bytes(data[at:at + size], "big") & 0x7FFFFFFF
        at += size
        return n

    while at < len(data):
        name_bytes, value_bytes = length(), length()
        name = data[at:at + name_bytes].decode()
        values[name] = data[at + name_bytes:at + name_bytes + value_bytes].decode("latin-1")
        at += name_bytes + value_bytes
    return values
