"""The frames against docs/protocol.md: its examples byte by byte, its limits, its tables."""

import pathlib
import random
import re
import socket
import threading
import unittest

from denizen import BadRequest, Connection, DenizenError, ProtocolViolation, frames

DOCUMENT = (pathlib.Path(__file__).resolve().parents[3] / "docs" / "protocol.md").read_text("utf-8")


def _examples():
    found = {}
    for side, name, block in re.findall(r"^```hex (\w+) ([\w-]+)\n(.*?)^```", DOCUMENT, re.M | re.S):
        digits = "".join(line.split(";")[0] for line in block.splitlines())
        found[name] = (side, bytes.fromhex(digits))
    return found


EXAMPLES = _examples()
SIDES = {name: side for name, (side, _) in EXAMPLES.items()}
BYTES = {name: raw for name, (_, raw) in EXAMPLES.items()}


def _decode(name):
    decoder = frames.Decoder(from_server=SIDES[name] == "server")
    (frame,) = decoder.feed(BYTES[name])
    assert not decoder.is_within_frame
    return frame


class Examples(unittest.TestCase):
    def test_the_document_has_them(self):
        self.assertGreater(len([side for side in SIDES.values() if side in ("client", "server")]), 12)

    def test_what_a_client_says_is_said_byte_by_byte(self):
        traceparent = bytes.fromhex("0af7651916cd43dd8448eb211c80319cb7ad6b716920333101")
        self.assertEqual(frames.traceparent_bytes("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), traceparent)
        said = {
            "hello": frames.hello("shop", "alice", token=b"no token", client="example/1"),
            "call-by-name": frames.call(1, "put", b"hello", end=True, content_type="text/plain"),
            "call-streamed": frames.call(
                2,
                (0xA1B2C3D4, 1),
                b"0123456789abcdef",
                end=False,
                length=20,
                deadline_ms=2000,
                durability="node" if BYTES["call-streamed"][40] == 1 else "process",
                idempotency_key="order-17",
                traceparent=traceparent,
            ),
            "data-end": frames.data(2, b"ghij", end=True),
            "call-empty": frames.call(3, (0xA1B2C3D4, 0), b"", end=True),
            "cancel": frames.encode(frames.CANCEL, 3, a=frames.CANCEL_DEADLINE),
            "credit": frames.encode(frames.CREDIT, 0, a=2 << 20),
            "ping": frames.encode(frames.PING, 0, c=0x63),
        }
        for name, raw in said.items():
            with self.subTest(name):
                self.assertEqual(raw.hex(" "), BYTES[name].hex(" "))
        clients = {name for name, side in SIDES.items() if side == "client"}
        self.assertEqual(set(said), clients, "an example is not tested")

    def test_what_a_server_says_is_understood(self):
        accepted = frames.read_accepted(_decode("accepted"))
        self.assertEqual(
            accepted, frames.Accepted(7, 256, 64 << 20, 1 << 20, 4 << 20, 0xA1B2C3D4, ["get", "put"])
        )
        reply = _decode("reply-to-name")
        self.assertEqual((reply.id, reply.is_end, reply.body, reply.c), (1, True, b"ok", 7))
        self.assertEqual((reply.text("content_type"), reply.text("invocation")), ("text/plain", "01J-1"))
        self.assertEqual(reply.fields["function_ref"].hex(), "d4c3b2a10000000001000000")
        begun = _decode("reply-begun")
        self.assertEqual((begun.is_end, begun.body, begun.fixed[0]), (False, b"part 1", 41))
        done = _decode("data-done")
        self.assertEqual((done.is_end, done.body, done.c, frames.durability(done.b)), (True, b"part 2", 42, "node"))
        error = frames.read_problem(_decode("fail"))
        self.assertIsInstance(error, DenizenError)
        self.assertEqual((error.kind, error.blame, error.retry, error.commit), ("caller-gone", "caller", "unknown", 42))
        self.assertEqual((error.detail, error.invocation), ("the caller cancelled", "01J-3"))
        self.assertEqual(frames.read_moved(_decode("moved")), ("10.0.0.2:7071", 8))
        drain = _decode("drain")
        self.assertEqual((drain.id, drain.a, drain.b, drain.c, drain.text("address")), (3, 1, 30000, 8, "10.0.0.2:7071"))
        refused = frames.read_problem(_decode("unsupported"))
        self.assertEqual((refused.kind, refused.retry, refused.cause), ("unsupported-version", "never", "unsupported-version"))
        self.assertEqual(_decode("pong").c, 0x63)

    def test_frames_come_out_the_same_however_the_stream_is_cut(self):
        stream = b"".join(raw for name, raw in BYTES.items() if SIDES[name] == "server")
        whole = list(frames.Decoder().feed(stream))
        for step in (1, 7, 31, 33, 500):
            decoder = frames.Decoder()
            cut = [frame for at in range(0, len(stream), step) for frame in decoder.feed(stream[at : at + step])]
            self.assertEqual(cut, whole, f"in steps of {step}")

    def test_a_token_is_its_text_in_bytes(self):
        text = re.search(r"^```text token-text\n(.*?)^```", DOCUMENT, re.M | re.S).group(1)
        self.assertEqual(frames.token_bytes("".join(text.split())), BYTES["token"])
        for bad in ("", "dzt1_", "dzt2_AAAA", "dzt1_AA==", "dzt1_!!", "dzt1_" + "A" * 1500):
            with self.assertRaises(BadRequest):
                frames.token_bytes(bad)


class Tables(unittest.TestCase):
    def test_limits_are_those_of_the_document(self):
        compared = 0
        for name, value in re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", DOCUMENT, re.M):
            if hasattr(frames, name):
                self.assertEqual(getattr(frames, name), int(value), name)
                compared += 1
        self.assertGreater(compared, 20)

    def test_kinds_and_fields_are_those_of_the_document(self):
        kinds = dict(re.findall(r"^\| `(\w+)`(?: \(OK\))? \| (\d+) \| (?:client|server|both)", DOCUMENT, re.M))
        self.assertEqual(len(kinds), len(frames._FORMS))
        for name, number in kinds.items():
            self.assertEqual(getattr(frames, name.upper()), int(number))
        fields = dict(re.findall(r"^\| `([A-Z_]+)` \| (\d+) \| (?:name|visible|prose|a \[token|\d+ )", DOCUMENT, re.M))
        self.assertEqual({name.lower(): int(tag) for name, tag in fields.items()}, frames._TAGS)


class Hostile(unittest.TestCase):
    def test_every_damaged_byte_is_a_frame_or_a_violation(self):
        for name, raw in BYTES.items():
            if SIDES[name] != "server":
                continue
            for at in range(len(raw)):
                for value in (0, 1, 0x80, 0xFF, raw[at] ^ 1):
                    damaged = raw[:at] + bytes([value]) + raw[at + 1 :]
                    try:
                        for frame in frames.Decoder().feed(damaged):
                            if frame.kind == frames.ACCEPTED:
                                frames.read_accepted(frame)
                            elif frame.kind == frames.FAIL:
                                frames.read_problem(frame)
                            elif frame.kind == frames.MOVED:
                                frames.read_moved(frame)
                    except ProtocolViolation:
                        pass

    def test_a_call_on_a_damaged_stream_ends(self):
        """A whole conversation with one byte of the server's changed, over a socket: the call ends, in a reply or an exception."""
        server = socket.socket()
        self.addCleanup(server.close)
        server.bind(("127.0.0.1", 0))
        server.listen()
        said = bytearray(BYTES["accepted"] + BYTES["reply-to-name"])
        said[len(BYTES["accepted"]) + 8] = 1
        dice = random.Random(7)

        def serve():
            while True:
                try:
                    peer, _ = server.accept()
                except OSError:
                    return
                with peer:
                    damaged = bytearray(said)
                    damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
                    try:
                        peer.settimeout(5)
                        peer.recv(4096)
                        peer.sendall(damaged[: len(BYTES["accepted"])])
                        peer.recv(4096)
                        peer.sendall(damaged[len(BYTES["accepted"]) :])
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        address = "{}:{}".format(*server.getsockname())
        ends = set()
        for _ in range(150):
            with Connection(address, "shop", "alice", patience=0, connect_timeout=5) as connection:
                try:
                    ends.add(connection.call("put", b"hello", deadline=0.2).body)
                except DenizenError as error:
                    ends.add(error.kind)
        self.assertGreater(len(ends), 4, f"damage of one kind only: {ends}")

    def test_rules_have_names(self):
        def broken(kind, **how):
            with self.assertRaises(ProtocolViolation) as caught:
                list(frames.Decoder().feed(how.pop("raw", None) or frames.encode(kind, 1, **how)))
            return caught.exception.kind

        self.assertEqual(broken(99), "unknown-kind")
        self.assertEqual(broken(frames.CALL, fixed=bytes(16)), "wrong-direction")
        self.assertEqual(broken(frames.PONG, flags=1), "bad-flags")
        self.assertEqual(broken(frames.PONG, fixed=bytes(16)), "bad-head-length")
        self.assertEqual(broken(frames.CREDIT, body=b"x"), "body-too-long")
        self.assertEqual(broken(frames.REPLY, fixed=bytes(16), fields={"token": b"x"}), "unknown-field")
        self.assertEqual(broken(frames.REPLY, fixed=bytes(16) + b"\x07\x00\xff\x00"), "field-cut-short")
        self.assertEqual(broken(frames.REPLY, fixed=bytes(16) + b"\x07\x00\x01\x00\n"), "bad-field")
        raw = frames.encode(frames.DATA, 1, body=b"x")
        self.assertEqual(broken(0, raw=raw[:-1] + b"\x01"), "bad-padding")
        skipped = frames.encode(frames.REPLY, 1, fixed=bytes(16) + b"\x01\x80\x01\x00\xff")
        self.assertEqual(len(list(frames.Decoder().feed(skipped))), 1, "a skippable field is skipped")

    def test_what_the_node_would_refuse_is_not_sent(self):
        for how in (
            {"function": "bad name"},
            {"function": ""},
            {"function": "f", "content_type": "a\r\nb"},
            {"function": "f", "idempotency_key": "k" * 129},
            {"function": "f", "traceparent": bytes(25)},
            {"function": "f", "durability": "disk"},
        ):
            with self.subTest(how), self.assertRaises(BadRequest):
                frames.call(1, how.pop("function"), b"", end=True, **how)


if __name__ == "__main__":
    unittest.main()
