"""train.py that kills itself with SIGKILL at one of its file operations in the run folder.

    python tests/kill_points.py WHEN ARGUMENTS OF TRAIN.PY

WHEN is the number of the operation, or a text: the first operation that it is part of, such as
"os.rename RUN/.config.yaml.part". Opening to write, renaming, deleting, or making a file or folder
are the moments at which what is on the disk changes, so that killing at each of them visits the
states that a run folder can be left in, whatever the speed of the machine. Prints the operation it
died at.
"""

import os
import signal
import sys

OPERATIONS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"}


def arm(when: str, folder: str) -> None:
    count = 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal count
        # Where a folder is deleted, names in it are relative to its descriptor.
        inside = event in ("os.remove", "os.rmdir") and arguments[-1] >= 0
        if event not in OPERATIONS or not (inside or str(arguments[0]).startswith(folder)):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR):
            return
        count += 1
        operation = f"{event} {arguments[0]}".replace(folder, "RUN")
        if when == str(count) or (not when.isdigit() and when in operation):
            print(f"killed at {operation}", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())
    from sbtt_jax import cli

    when, *sys.argv[1:] = sys.argv[1:]
    arm(when, sys.argv[sys.argv.index("--out") + 1])
    cli.run(cli.train)
