"""What a process keeps of its privileges, seen from outside."""

import json
import subprocess
import sys

PROGRAM = """
import json, resource, threading
from router.privileges import Capability, harden, keep_only
def fields():
    lines = open("/proc/thread-self/status").read().splitlines()
    return dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)
before = fields()
harden()
keep_only(Capability.NET_ADMIN, Capability.BPF)
seen = [fields()]
thread = threading.Thread(target=lambda: seen.append(fields()))
thread.start()
thread.join()
print(json.dumps([before, seen, resource.getrlimit(resource.RLIMIT_CORE)]))
"""


def test_only_what_is_named_is_kept_and_new_threads_have_no_more():
    """Of what there was; a thread made later inherits it; nothing can be gained again, nothing dumped."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, seen, core = json.loads(done.stdout)
    wanted = int(before["CapPrm"], 16) & (1 << 12 | 1 << 39)
    assert len(seen) == 2
    for fields in seen:
        assert int(fields["CapPrm"], 16) == int(fields["CapEff"], 16) == wanted
        assert int(fields["CapInh"], 16) == 0
        assert fields["NoNewPrivs"] == "1"
    assert core == [0, 0]
