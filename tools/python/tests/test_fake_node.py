"""The client against the small node of tools/framed/tests/against_a_node, whose functions have every end that a call can have.

Skipped unless DENIZEN_FAKE says where it is: `cargo test -p denizen-framed` starts it and these."""

import os
import threading
import unittest

import denizen

FAKE = os.environ.get("DENIZEN_FAKE", "")
OTHER_FAKE = os.environ.get("DENIZEN_OTHER_FAKE", "")
# Generous: the machine may be busy. Nothing here waits for it to pass.
PATIENCE = 60.0
LARGE = bytes(at % 251 for at in range(3 << 20))


def connect(app="app", process="alice", **how):
    how.setdefault("patience", PATIENCE)
    return denizen.Connection(FAKE, app, process, connect_timeout=PATIENCE, **how)


@unittest.skipUnless(FAKE, "SKIPPED the fake node: DENIZEN_FAKE is not set")
class Calls(unittest.TestCase):
    def test_a_call_and_what_is_said_of_it(self):
        with connect() as connection:
            reply = connection.call("echo", "hällo", content_type="text/plain", durability="node")
            self.assertEqual((reply.text, reply.epoch, reply.commit, reply.durability), ("hällo", 7, 42, "node"))
            self.assertEqual((reply.content_type, reply.invocation), ("text/plain", "inv-1"))
            self.assertEqual(connection.epoch("alice"), 7)
            self.assertEqual(connection.call("echo").body, b"")

    def test_calls_are_pipelined_and_end_in_any_order(self):
        with connect() as connection:
            calls = [connection.begin("slow", "100" if n == 0 else "0") for n in range(100)]
            self.assertEqual(connection.call("echo", b"last").body, b"last")
            for call in calls:
                call.wait()
            self.assertEqual(connection.in_flight, 0)

    def test_large_bodies_go_both_ways_at_once_within_the_windows(self):
        with connect() as connection:
            calls = [connection.begin("parrot", LARGE) for _ in range(3)]
            for call in calls:
                self.assertEqual(call.wait().body, LARGE)
            calls = [connection.begin("generate", b"2000000") for _ in range(8)]
            for call in reversed(calls):
                self.assertEqual(len(call.wait().body), 2_000_000)

    def test_a_stream_is_written_and_read_in_turns(self):
        with connect() as connection:
            with connection.stream("parrot") as stream:
                for word in (b"one", b"two", b"three"):
                    stream.write(word)
                    said = b""
                    while len(said) < len(word):
                        said += stream.read_some(len(word) - len(said))
                    self.assertEqual(said, word)
                self.assertEqual(stream.head["commit"], 41, "so far")
                self.assertEqual(stream.read(), b"")
                self.assertEqual(stream.head["commit"], 42, "in the end")
            with connection.stream("length", length=len(LARGE)) as stream:
                stream.write(LARGE)
                self.assertEqual(stream.read(), str(len(LARGE)).encode())
            # Left in the middle it is cancelled, and what was on its way is credited: together these are more than a window.
            for _ in range(12):
                with connection.stream("generate", deadline=PATIENCE) as stream:
                    stream.write(b"20000000")
                    stream.finish()
                    self.assertTrue(stream.read_some(1000))
            self.assertEqual(connection.call("echo", b"on", deadline=PATIENCE).body, b"on")

    def test_a_cancelled_call_holds_nothing_up(self):
        with connect() as connection:
            for _ in range(100):
                connection.begin("slow", b"60000").cancel()
            self.assertEqual(connection.call("echo", b"x").body, b"x")

    def test_an_unbound_connection_is_told_which_process_answered(self):
        with connect(process=None) as connection:
            self.assertEqual(connection.call("echo", process="bob").process, "bob")
            self.assertEqual(connection.call("echo").process, "any-1")


@unittest.skipUnless(FAKE, "SKIPPED the fake node: DENIZEN_FAKE is not set")
class Failures(unittest.TestCase):
    def test_a_failure_says_whose_it_is_and_what_to_do(self):
        with connect() as connection:
            with self.assertRaises(denizen.FunctionFault) as caught:
                connection.call("fail")
            error = caught.exception
            self.assertEqual((error.kind, error.blame, error.retry), ("function-failed", "function", "safe"))
            self.assertEqual((error.cause, error.remedy, error.commit), ("a whim", "ask nicely", 42))
            self.assertEqual(str(error), "function-failed: it does not want to")
            with self.assertRaises(denizen.CallerFault):
                connection.call("no-such")
            with self.assertRaises(denizen.BadRequest):
                connection.call("bad name")
            with self.assertRaises(denizen.BadRequest):
                connection.call("echo", bytes(33 << 20))
            with connection.stream("fail") as stream, self.assertRaises(denizen.FunctionFault):
                stream.read()
            self.assertEqual(connection.call("echo", b"on").body, b"on")

    def test_a_lost_call_is_made_again_only_with_a_key(self):
        with connect() as connection:
            before = int(connection.call("count").body)
            with self.assertRaises(denizen.ConnectionLost) as caught:
                connection.call("cut")
            self.assertEqual((caught.exception.retry, caught.exception.blame), ("unknown", "host"))
            reply = connection.call("cut", idempotency_key="python-1")
            self.assertTrue(reply.replayed)
            self.assertEqual(int(reply.body), before + 2)
            self.assertEqual(int(connection.call("count").body), before + 3, "each was executed once")

    def test_calls_behind_a_drain_go_to_the_next_connection(self):
        with connect() as connection:
            before = int(connection.call("count").body)
            leave = connection.begin("leave")
            behind = [connection.begin("count") for _ in range(5)]
            self.assertEqual(leave.wait().body, b"left")
            counts = sorted(int(call.wait().body) for call in behind)
            self.assertEqual(counts, list(range(before + 1, before + 6)), "each was executed once")

    def test_a_drained_connection_ends_what_it_runs_beside_the_next_one(self):
        with connect() as connection:
            slow = connection.begin("slow", b"60000")
            self.assertEqual(connection.call("leave").body, b"left")
            self.assertFalse(connection.is_connected, "it takes no more calls")
            # Without a key: each would be reported if it were sent to where nobody takes it.
            before = int(connection.call("count").body)
            self.assertEqual(int(connection.call("count").body), before + 1)
            self.assertFalse(slow.is_done, "the first runs on")
            slow.cancel()

    def test_what_a_stream_received_outlives_its_connection(self):
        with connect() as connection, connection.stream("length") as stream:
            stream.write(b"12345")
            stream.finish()
            self.assertEqual(stream.head["commit"], 42)
            connection.call("leave")
            connection.call("echo")
            self.assertEqual(stream.read(), b"5")

    def test_a_reset_is_a_lost_connection_like_any_other(self):
        with connect() as connection:
            with self.assertRaises(denizen.ConnectionLost) as caught:
                connection.call("reset")
            self.assertEqual(caught.exception.retry, "unknown")
            self.assertTrue(connection.call("reset", idempotency_key="python-reset").replayed)

    def test_a_call_that_may_be_repeated_is_and_not_for_ever(self):
        with connect() as connection:
            before = int(connection.call("count").body)
            with self.assertRaises(denizen.ConnectionLost) as caught:
                connection.call("cut", repeatable=True)
            self.assertEqual(caught.exception.retry, "unknown")
            self.assertEqual(int(connection.call("count").body), before + 9, "as often as a call is sent at most")

    def test_connections_of_a_pool_believe_no_owner_that_another_has_outlived(self):
        pool = denizen.Pool(FAKE, "app", "alice", patience=PATIENCE)
        with pool.connection() as one, pool.connection() as other:
            one.call("echo")
            other.call("echo")
            # As if another node had answered it.
            one._saw("alice", 8)
            with self.assertRaises(denizen.ProtocolViolation) as caught:
                other.call("echo")
            self.assertEqual((caught.exception.kind, caught.exception.retry), ("stale-epoch", "unknown"))
            self.assertEqual(other.epoch("alice"), 8)
        pool.close()

    def test_a_trace_is_passed_on_as_text_or_bytes(self):
        with connect() as connection:
            text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            self.assertEqual(connection.call("echo", b"x", traceparent=text).body, b"x")
            with self.assertRaises(denizen.BadRequest):
                connection.call("echo", b"x", traceparent="00-0af7-01")

    def test_calls_that_were_moved_are_made_where_their_process_is(self):
        here, there = FAKE.rpartition(":")[2], OTHER_FAKE.rpartition(":")[2]
        with connect(process=None) as connection:
            moved = [connection.begin("count", process=f"via-{here}-{there}") for _ in range(3)]
            stays = connection.begin("echo", b"x", process="bob")
            self.assertEqual(sorted(int(call.wait().body) for call in moved), [1, 2, 3])
            self.assertEqual(stays.wait().body, b"x")
            with self.assertRaises(denizen.HostFault) as caught:
                connection.call("count", process=f"via-{here}-{there}-{here}")
            self.assertEqual((caught.exception.kind, caught.exception.retry), ("moved", "safe"))
            self.assertIn("circle", str(caught.exception))
            with self.assertRaises(denizen.DeadlineExceeded):
                connection.call("slow", b"60000", process=f"via-{here}-{there}", deadline=0.05)
            self.assertEqual(connection.call("count", process=f"via-{here}-{there}").body, b"4")
            self.assertEqual(connection.in_flight, 0)
        with connect(process=None, patience=0.1) as connection:
            with self.assertRaises(denizen.Unreachable) as unreachable:
                connection.call("count", process=f"via-{here}-1")
            self.assertEqual(unreachable.exception.retry, "safe")

    def test_moves_are_not_followed_for_ever(self):
        with self.assertRaises(denizen.HostFault) as caught:
            connect("loop").connect()
        self.assertEqual((caught.exception.kind, caught.exception.retry), ("moved", "safe"))

    def test_an_owner_of_the_past_is_not_believed(self):
        with connect() as connection:
            connection.call("echo")
            with self.assertRaises(denizen.ProtocolViolation) as caught:
                connection.call("old")
            self.assertEqual((caught.exception.kind, caught.exception.retry), ("stale-epoch", "unknown"))
            self.assertEqual(connection.call("echo", b"on").body, b"on")

    def test_deadlines(self):
        with connect() as connection, self.assertRaises(denizen.DeadlineExceeded) as caught:
            connection.call("slow", b"60000", deadline=0.03)
        self.assertIsInstance(caught.exception, TimeoutError)

    def test_refusals(self):
        with self.assertRaises(denizen.CallerFault) as caught:
            connect("guarded").connect()
        self.assertEqual((caught.exception.kind, caught.exception.cause), ("bad-token", "token-missing"))
        with self.assertRaises(denizen.HostFault) as caught:
            connect("busy", patience=0.2).call("echo")
        self.assertEqual((caught.exception.kind, caught.exception.retry), ("overloaded", "safe"))
        with self.assertRaises(denizen.Unreachable):
            denizen.Connection("127.0.0.1:1", "app", patience=0.1).connect()
        with self.assertRaises(denizen.BadRequest):
            denizen.Connection("no-port", "app")

    def test_a_reply_over_the_limit_is_given_up(self):
        with connect(reply_limit=100_000) as connection:
            for size in (b"100001", b"9000000"):
                with self.assertRaises(denizen.ReplyTooLong):
                    connection.call("generate", size)
            self.assertEqual(len(connection.call("generate", b"100000").body), 100_000)

    def test_a_pool_serves_threads(self):
        pool = denizen.Pool(FAKE, "app", "alice", patience=PATIENCE, keep=2)
        replies = []

        def work():
            for _ in range(20):
                with pool.connection() as connection:
                    replies.append(connection.call("echo", b"x").body)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(replies, [b"x"] * 80)
        pool.close()


if __name__ == "__main__":
    unittest.main()
