"""The client against a real node that has the `counter` example deployed.

Skipped unless DENIZEN_DATA (host:port) says where it is; DENIZEN_TOKEN is the token for it, where it wants one."""

import json
import os
import threading
import unittest
import uuid

import denizen

DATA = os.environ.get("DENIZEN_DATA", "")
TOKEN = os.environ.get("DENIZEN_TOKEN") or None
FAULTY_TOKEN = os.environ.get("DENIZEN_FAULTY_TOKEN") or None
PATIENCE = 60.0


@unittest.skipUnless(DATA, "SKIPPED the real node: DENIZEN_DATA is not set")
class RealNode(unittest.TestCase):
    def setUp(self):
        self.process = f"python-{uuid.uuid4().hex[:12]}"
        self.connection = denizen.Connection(DATA, "counter", self.process, token=TOKEN, patience=PATIENCE)
        self.addCleanup(self.connection.close)

    def increment(self, by=1, **how):
        reply = self.connection.call("increment", json.dumps({"by": by}), content_type="application/json", **how)
        return json.loads(reply.body)["count"], reply

    def test_it_counts(self):
        self.assertEqual(self.increment(2)[0], 2)
        count, reply = self.increment(3)
        self.assertEqual(count, 5)
        self.assertGreater(reply.commit, 0)
        self.assertGreater(reply.epoch, 0)
        self.assertIn(reply.durability, ("process", "node", "store"))

    def test_calls_are_pipelined(self):
        calls = [self.connection.begin("increment", b'{"by":1}', content_type="application/json") for _ in range(200)]
        counts = sorted(json.loads(call.wait().body)["count"] for call in calls)
        self.assertEqual(counts, list(range(1, 201)))

    def test_a_bad_input_is_the_callers_fault(self):
        with self.assertRaises(denizen.CallerFault) as caught:
            self.connection.call("increment", b"no JSON at all", content_type="application/json")
        self.assertEqual((caught.exception.kind, caught.exception.blame), ("bad-input", "caller"))
        self.assertEqual(self.increment()[0], 1)

    def test_an_unknown_function_is_the_callers_fault(self):
        with self.assertRaises(denizen.CallerFault) as caught:
            self.connection.call("no-such-function")
        self.assertEqual(caught.exception.kind, "unknown-function")

    def test_an_unknown_application_is_refused(self):
        with self.assertRaises(denizen.CallerFault):
            denizen.Connection(DATA, "no-such-application", "p", token=TOKEN, patience=PATIENCE).connect()

    def test_the_same_key_is_executed_once(self):
        count, first = self.increment(2, idempotency_key="order-1")
        again, second = self.increment(2, idempotency_key="order-1")
        self.assertEqual((count, again, first.replayed, second.replayed), (2, 2, False, True))
        self.assertEqual(self.increment(1, idempotency_key="order-2")[0], 3)

    def test_what_is_given_along(self):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        count, reply = self.increment(durability="node", deadline=PATIENCE, traceparent=trace)
        self.assertEqual((count, reply.durability), (1, "node"))
        with self.assertRaises(denizen.CallerFault) as caught:
            unbound = denizen.Connection(DATA, "counter", token=TOKEN, patience=PATIENCE)
            self.addCleanup(unbound.close)
            unbound.call("value", process=f"{self.process}-not-there", create=False)
        self.assertEqual(caught.exception.kind, "unknown-process")

    @unittest.skipUnless(FAULTY_TOKEN, "SKIPPED traces: DENIZEN_FAULTY_TOKEN is not set")
    def test_a_trace_is_of_one_call(self):
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for process in (self.process, None):
            connection = denizen.Connection(DATA, "faulty", process, token=FAULTY_TOKEN, patience=PATIENCE)
            self.addCleanup(connection.close)
            self.assertEqual(connection.call("traced", traceparent=trace).body.decode(), trace)
            self.assertEqual(connection.call("traced").body, b"none")

    def test_a_pool_of_threads(self):
        pool = denizen.Pool(DATA, "counter", self.process, token=TOKEN, patience=PATIENCE, keep=4)
        self.addCleanup(pool.close)

        def work():
            for _ in range(10):
                with pool.connection() as connection:
                    connection.call("increment", b'{"by":1}', content_type="application/json")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(self.increment(1)[0], 41)

    def test_a_stream(self):
        with self.connection.stream("increment", content_type="application/json") as stream:
            stream.write(b'{"by"')
            stream.write(b":4}")
            self.assertEqual(json.loads(stream.read())["count"], 4)


if __name__ == "__main__":
    unittest.main()
