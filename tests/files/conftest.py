"""Writers that are stopped in the middle."""

import os
import signal

import pytest


@pytest.fixture(params=["full", "killed"])
def stopped_half_way(request):
    """
    Runs a call in another process, where no file can grow beyond 1000 bytes: the write that would do so fails as on a
    full disk, or the system kills the process in it.
    """
    resource = pytest.importorskip("resource", reason="needs POSIX")

    def run(call) -> None:
        process = os.fork()
        if not process:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if request.param == "killed" else signal.SIG_IGN)
            try:
                call()
            except OSError:
                os._exit(1)
            finally:
                os._exit(2)
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == (-signal.SIGXFSZ if request.param == "killed" else 1)

    run.kind = request.param
    return run
