"""train.py that kills itself with SIGKILL at its Nth file operation in the run folder.

    python tests/kill_points.py N ARGUMENTS OF TRAIN.PY

Opening, renaming, deleting or making a file or folder are the moments at which what is on the
disk changes, so that killing at each of them visits every state that a run folder can be left in,
and the same ones on a fast and on a slow machine. Prints the operation it died at.
"""

import os
import signal
import sys

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def arm(last: int, folder: str) -> None:
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        if event not in OPERATIONS or not str(arguments[0]).startswith(folder):
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        count += 1
        if count == last:
            print(f"killed at {event} {arguments[0]}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    import train
    from sbtt_jax import command_line

    number, *sys.argv[1:] = sys.argv[1:]
    arm(int(number), sys.argv[sys.argv.index("--out") + 1])
    command_line.run(train.main)
