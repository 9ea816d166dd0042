"""``python -m tests.zero_device FOLDER``: jobs through the real ``spaces`` package, its service played here.

There is no GPU: in the fork, moving the weights is replaced by leaving them on the CPU. Everything else is the
package's own code: the emulated CUDA, the packing of weights before launch, the fork, the queues between the processes,
stop and release.
"""

from __future__ import annotations

import contextvars
import itertools
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

calls: list[str] = []
refuse = threading.Event()


class Service(BaseHTTPRequestHandler):
    """Schedules, allows and releases a device, as the package's client expects it."""

    def do_POST(self) -> None:  # noqa: N802
        name = self.path.partition("?")[0]
        calls.append(name)
        device = {"idle": calls.count("/schedule") > 1, "nvidiaIndex": 0, "nvidiaUUID": "none", "allowToken": "t"}
        status, content = (503, b"") if refuse.is_set() and name == "/schedule" else (200, json.dumps(device).encode())
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def main(folder: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "SPACES_ZERO_GPU": "true",
        "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{server.server_port}",
        "ZEROGPU_OFFLOAD_DIR": f"{folder}/tensors",
    }
    import torch

    torch.version.cuda = torch.version.cuda or "12.8"  # what the package looks up, and a CPU build of torch has not
    torch._C._cuda_init = getattr(torch._C, "_cuda_init", lambda: None)
    torch.cuda._is_in_bad_fork = bool  # False

    from aig.runs import zerogpu

    def load():

        assert torch.cuda.is_available()  # emulated
        model = torch.nn.Linear(2, 2).to("cuda")
        with torch.no_grad():
            model.weight.fill_(3.0)
        return model

    ready = zerogpu.early(load)
    from spaces import zero
    from spaces.zero import torch as device
    from spaces.zero.torch.patching import tensor_packs

    def stay(callback: object = None) -> None:
        for pack in tensor_packs:
            content, place = Path(pack.path()).read_bytes(), 0
            for tensor, size, aligned in sum(pack.batches, []):
                real = torch.frombuffer(bytearray(content[place : place + size]), dtype=tensor.dtype).view(tensor.shape)
                for fake in pack.fakes[tensor]:
                    fake.data = real
                place += aligned

    device.init, device.move = (lambda uuid: None), stay
    kept: list[str] = []  # of one process

    def job(order):
        kept.append(order)
        if order == "fail":
            raise FloatingPointError("the images are not finite")
        while order == "endless":
            yield None
            threading.Event().wait(0.01)
        with torch.no_grad():
            nothing = ready()(torch.ones(1, 2) * torch.arange(40_000).view(-1, 1)).sum().item() * 0
            yield nothing + ready().weight.sum().item()
        yield order, os.getpid(), list(kept)

    run = zerogpu.on_gpu(job, seconds=lambda order: 7.4)
    zero.startup()  # what launching the app does first
    assert calls == ["/startup-report"] and os.listdir(f"{folder}/tensors")

    def in_worker(order, most=100):
        """As the engine runs it, for so many answers: in a thread of its own, in the context of a request."""
        got = []

        def work():
            answers = run(order)
            try:
                got.extend(itertools.islice(answers, most))
            except Exception as failure:
                got.append(failure)
            answers.close()

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), f"{order} hangs"
        return got

    (weight, first), (_, second) = in_worker("a"), in_worker("b")
    assert weight == 12.0, weight  # the model's weights arrived
    assert first == ("a", first[1], ["a"]) and first[1] != os.getpid() and kept == [], first
    assert second == ("b", first[1], ["a", "b"]), second  # the process is kept, and what it holds
    (failure,) = in_worker("fail")
    assert isinstance(failure, FloatingPointError) and "in job" in failure.__notes__[0], failure
    assert in_worker("endless", most=5) == [None] * 5
    assert in_worker("c")[1] == ("c", first[1], ["a", "b", "fail", "endless", "c"])
    assert calls[1:] == ["/schedule", "/allow", "/release", *["/schedule", "/release"] * 4], calls
    refuse.set()
    (refused,) = in_worker("d")
    assert isinstance(refused, zerogpu.NoGpu) and "No GPU" in str(refused), refused
    print("all right")


if __name__ == "__main__":
    main(sys.argv[1])
