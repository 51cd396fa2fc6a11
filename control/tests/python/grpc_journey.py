"""A gRPC server behind a port of a microVM, and a gRPC client at its endpoint: all four kinds of calls."""

import queue
import sys
from concurrent import futures

import grpc

socket, ca, port, host, token = sys.argv[1:]


class Service(grpc.GenericRpcHandler):
    def service(self, details):
        assert not any(name.startswith("x-aws-proxy") for name, _ in details.invocation_metadata)
        return {
            "/test/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/test/Down": grpc.unary_stream_rpc_method_handler(self.down),
            "/test/Up": grpc.stream_unary_rpc_method_handler(self.up),
            "/test/Both": grpc.stream_stream_rpc_method_handler(self.both),
            "/test/Fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }.get(details.method)

    def unary(self, request, context):
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bytes-bin", b"\x00\xff")))
        return request[::-1]

    def down(self, request, context):
        for number in range(int(request)):
            yield str(number).encode()

    def up(self, requests, context):
        return str(sum(len(request) for request in requests)).encode()

    def both(self, requests, context):
        for request in requests:
            yield request + b"!"

    def fail(self, request, context):
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "so it is ü")


server = grpc.server(futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((Service(),))
server.add_insecure_port(f"unix:{socket}")
server.start()

with open(ca, "rb") as file:
    credentials = grpc.ssl_channel_credentials(file.read())
options = (("grpc.ssl_target_name_override", host), ("grpc.default_authority", host))
channel = grpc.secure_channel(f"127.0.0.1:{port}", credentials, options)
metadata = (("x-aws-proxy-auth", token),)
DEADLINE_SECONDS = 60


def call(kind, name, argument, metadata=metadata):
    return getattr(channel, kind)(f"/test/{name}")(argument, metadata=metadata, timeout=DEADLINE_SECONDS)


answer, details = channel.unary_unary("/test/Unary").with_call(
    b"abc" * 100_000, metadata=metadata, timeout=DEADLINE_SECONDS
)
assert answer == b"cba" * 100_000
assert ("x-first", "1") in details.initial_metadata(), details.initial_metadata()
trailing = details.trailing_metadata()
assert ("x-last", "2") in trailing and ("x-bytes-bin", b"\x00\xff") in trailing, trailing
print("ok unary")
assert list(call("unary_stream", "Down", b"1000")) == [str(number).encode() for number in range(1000)]
print("ok down")
assert call("stream_unary", "Up", (b"x" * 50_000 for _ in range(100))) == b"5000000"
print("ok up")


def turns():
    """Each request waits for the answer before it: nothing is kept back on the way."""
    for _ in range(20):
        yield b"turn"
        answered.get(timeout=DEADLINE_SECONDS)


answered = queue.Queue()
count = 0
for answer in call("stream_stream", "Both", turns()):
    assert answer == b"turn!"
    count += 1
    answered.put(None)
assert count == 20
print("ok both")
try:
    call("unary_unary", "Fail", b"")
    raise AssertionError("it was answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION and error.details() == "so it is ü", error
print("ok fail")
try:
    call("unary_unary", "Unary", b"", metadata=())
    raise AssertionError("it was answered")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
print("ok refused")
stream = call("stream_stream", "Both", iter([b"a"]))
assert next(stream) == b"a!"
stream.cancel()
channel.close()
server.stop(None).wait()
print("ok end")
