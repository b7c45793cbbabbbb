#!/usr/bin/env python3
"""kill -9 at any moment, the same command again: the same bytes, and nothing left behind.

  kill_test.py [--kills 20] [--seed 1] PITH compress MODEL --size 60MB

Kills come at random times over the whole run, and just before random calls that change the file system (kill_at.c),
the last dozen of them one by one: there the result is in place and the work folder is not yet gone. Repeated commands
are killed too, half of the time.
"""
import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
LAST_CALLS = 14


class Test:
    def __init__(self, options, folder):
        self.options, self.folder = options, Path(folder)
        self.random = random.Random(options.seed)
        self.shim = self.folder / "kill_at.so"
        subprocess.run([os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-o", self.shim, HERE / "kill_at.c",
                        "-ldl"], check=True)

    def run(self, place, kill_at=0, seconds=None, allowed=0):
        """One run of the command in folder `place`: exit code (negative: killed), seconds, calls."""
        count = self.folder / "count"
        env = dict(os.environ, LD_PRELOAD=str(self.shim), KILL_AT=str(kill_at), COUNT_TO=str(count))
        command = [self.options.pith, *self.options.command, "-o", "out.pith", "--report", "report.html", "--cache",
                   "cache", "--progress", "none"]
        with open(self.folder / "log", "w+") as log:
            began = time.monotonic()
            process = subprocess.Popen(command, cwd=place, env=env, stdout=log, stderr=log)
            try:
                code = process.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                code = process.wait()
            took = time.monotonic() - began
            log.seek(0)
            text = log.read()
        if code not in (0, allowed, -signal.SIGKILL):
            sys.exit(f"FAILED: exit code {code}: {text}")
        return code, took, int(count.read_text()) if code == 0 else 0

    def place(self, name):
        place = self.folder / name
        place.mkdir()
        return place

    def check_result(self, place):
        """The result is whole or not there."""
        out = place / "out.pith"
        if out.exists() and out.read_bytes() != self.reference:
            sys.exit(f"FAILED: {out} is not what a run that nobody disturbs writes")
        return out.exists()

    def finished(self, place):
        """With the last unit gone there is nothing left to do: the next command clears an empty folder away."""
        work = place / "out.pith.work"
        if not self.check_result(place) or any(work.glob("*.unit")):
            return False
        if work.exists():
            self.run(place, allowed=2)  # "exists already"
        return True

    def until_done(self, place):
        runs = 0
        while not self.finished(place):
            again = self.random.random() < 0.5 and runs < 2
            self.run(place, seconds=self.random.uniform(0, self.seconds) if again else None)
            runs += 1
        names = sorted(p.name for p in place.iterdir() if p.name != "cache")
        if names != ["out.pith", "report.html", "report.json"]:
            sys.exit(f"FAILED: left behind in {place}: {names}")
        shutil.rmtree(place)
        return runs

    def main(self):
        place = self.place("reference")
        _, self.seconds, self.calls = self.run(place)
        self.reference = (place / "out.pith").read_bytes()
        self.check_result(place)
        print(f"undisturbed: {self.seconds:.1f} s, {self.calls} calls, {len(self.reference)} bytes", flush=True)

        killed, tries = 0, 0
        while killed < self.options.kills:
            tries += 1
            call = self.random.randint(1, self.calls) if tries % 4 == 0 else 0
            seconds = None if call else self.random.uniform(0, self.seconds)
            place = self.place(f"kill-{tries}")
            code, took, _ = self.run(place, call, seconds)
            killed += code != 0
            there = self.check_result(place)
            runs = self.until_done(place)
            when = f"before call {call}" if call else f"after {took:.1f} s"
            print(f"{killed}/{self.options.kills} {'killed ' + when if code else 'was done before the kill'}, "
                  f"result {'there' if there else 'not there'}: same bytes after {runs} more", flush=True)

        # The last calls, each from the state that a kill before the first of them leaves.
        state = self.place("state")
        first = max(1, self.calls - LAST_CALLS)
        self.run(state, first)
        left = self.folder / "left"
        shutil.copytree(state, left)
        _, _, rest = self.run(left)
        shutil.rmtree(left)
        for call in range(1, rest + 1):
            place = self.folder / f"last-{call}"
            shutil.copytree(state, place)
            self.run(place, call)
            killed += 1
            there = self.check_result(place)
            runs = self.until_done(place)
            print(f"end {call}/{rest}, result {'there' if there else 'not there'}: same bytes after {runs} more",
                  flush=True)
        print(f"{killed} kills, all ended with the same bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pith")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="pith's command line, without -o, --report, --cache")
    options = parser.parse_args()
    options.pith = str(Path(options.pith).resolve())
    options.command = [str(Path(a).resolve()) if Path(a).exists() else a for a in options.command]
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pith-kill-", dir=memory) as folder:
        Test(options, folder).main()


main()
