"""A network between the pool and Redis that can be bad: Proxy(port)."""

import contextlib
import socket
import struct
import threading
import time


class Proxy:
    """Passes connections on to 127.0.0.1:`port`. Use with `with`; `url` is what REDIS_URL takes."""

    def __init__(self, port):
        self.target, self.delay_s, self.cut_every, self.replies = ("127.0.0.1", port), 0, 0, 0
        self.pairs, self.late, self.lock = set(), set(), threading.Lock()
        self.there, self.back = threading.Event(), threading.Event()  # does what is sent there, and back, arrive?
        self.caught_up = threading.Event()
        self.release()
        self.listener = self.listen(0)
        self.port = self.listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.release()
        self.caught_up.set()
        self.refuse()

    def listen(self, port):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(64)
        threading.Thread(target=self.accept, args=(listener,), daemon=True).start()
        return listener

    # --- what may go wrong

    def refuse(self):
        """Connections end and no new ones are accepted."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self.listener.close()
        with self.lock:
            pairs = list(self.pairs)
        for pair in pairs:
            reset(*pair)

    def accepts(self):
        return self.listener.fileno() >= 0

    def accept_again(self):
        self.listener = self.listen(self.port)

    def hold(self):
        """As if a cable were pulled: nothing arrives; what was sent does later, after release()."""
        self.there.clear()
        self.back.clear()

    def hold_replies(self):
        """Redis does what it is asked for, and nobody hears of it."""
        self.back.clear()

    def release(self):
        self.there.set()
        self.back.set()

    def make_late(self):
        """What the connections of now have been sent, or will be, takes another way and arrives after catch_up() only."""
        self.caught_up.clear()
        with self.lock:
            self.late = set(self.pairs)

    def catch_up(self):
        self.caught_up.set()

    def delay(self, seconds):
        """Each reply comes so much later."""
        self.delay_s = seconds

    def cut(self, every):
        """Of each so many-th piece of replies only half comes, and then the connection's end. 0: of none."""
        self.cut_every = every

    # ---

    def accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                reset(client)
                continue
            pair = (client, server)
            for sock in pair:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self.lock:
                self.pairs.add(pair)
            threading.Thread(target=self.pass_on, args=(pair, client, server), daemon=True).start()
            threading.Thread(target=self.pass_on, args=(pair, server, client), daemon=True).start()

    def pass_on(self, pair, source, target):
        is_reply = source is pair[1]
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_reply and self.delay_s:
                    time.sleep(self.delay_s)
                (self.back if is_reply else self.there).wait()
                if pair in self.late:
                    self.caught_up.wait()
                if is_reply and self.is_cut():
                    target.sendall(data[:len(data) // 2])
                    break
                target.sendall(data)
        for sock in pair:  # both directions end; a half that was sent still arrives
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with self.lock:
            self.pairs.discard(pair)

    def is_cut(self):
        with self.lock:
            self.replies += 1
            return self.cut_every and self.replies % self.cut_every == 0


def reset(*socks):
    for sock in socks:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.shutdown(socket.SHUT_RDWR)
