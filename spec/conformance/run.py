"""Run the conformance kit against a reader of `.nola` files, in whatever language it is written.

    python spec/conformance/run.py -- my-reader --conformance
    python spec/conformance/run.py --batch -- my-reader --conformance-batch
    python spec/conformance/run.py -- python spec/conformance/reference_reader.py

README.md beside this program says what a reader gets and what it prints. The program needs Python 3.8 and nothing else.
It prints one line for each file that the reader takes wrongly, and the number of files at the end. The exit status is 0
if the reader is right about all files, 1 if it is not, and 2 if the reader cannot be run.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path

KIT = Path(__file__).resolve().parent


class ReaderFailed(Exception):
    """The reader did not answer; the argument is the reason."""


def ask_once(command, paths, timeout):
    """Run the reader for one file, and return its answer."""
    try:
        done = subprocess.run([*command, *paths], capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise ReaderFailed(f"no answer within {timeout:g} s") from None
    if done.returncode:
        raise ReaderFailed(f"exit status {done.returncode}: {done.stderr.decode(errors='replace').strip()[-500:]}")
    return parse(done.stdout)


def parse(line):
    """Return the JSON object of an answer."""
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise ReaderFailed(f"no JSON on stdout: {error}") from None
    if not isinstance(answer, dict):
        raise ReaderFailed("the answer is not a JSON object")
    return answer


class Batch:
    """A reader that is started once: a line of JSON for each file goes in, a line of JSON comes out."""

    def __init__(self, command):
        """Start the reader."""
        self._command = command
        self._process = self._start()

    def ask(self, paths):
        """Return the answer for one file. A reader that has ended is started again."""
        if self._process.poll() is not None:
            self._process = self._start()
        try:
            self._process.stdin.write(json.dumps(paths).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise ReaderFailed(f"the reader has ended: {error}") from None
        if not line:
            raise ReaderFailed(f"the reader ended with status {self._process.wait()}")
        return parse(line)

    def close(self):
        """Stop the reader."""
        self._process.kill()
        self._process.communicate()

    def _start(self):
        return subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def faults_of_valid(entry, answer):
    """Yield what is wrong with an answer for a valid file."""
    if "refused" in answer:
        yield f"refused ({answer['refused']}), and it is valid"
        return
    rungs = answer.get("rungs")
    if not isinstance(rungs, list) or len(rungs) != len(entry["rungs"]):
        yield f"expected {len(entry['rungs'])} rungs"
        return
    for number, wanted in enumerate(entry["rungs"]):
        found = rungs[number]
        if found.get("decoded_sha256") != wanted["decoded_sha256"]:
            yield f"rung {number}: decoded SHA-256 {found.get('decoded_sha256')}, expected {wanted['decoded_sha256']}"
        tensors = found.get("tensors")
        if tensors is None:  # a reader may leave them out
            continue
        for name in sorted(wanted["tensors"].keys() | tensors.keys()):
            if wanted["tensors"].get(name) != tensors.get(name):
                yield f"rung {number}: {name!r} is {tensors.get(name)}, expected {wanted['tensors'].get(name)}"


def faults_of_invalid(entry, answer, any_code):
    """Yield what is wrong with an answer for an invalid file."""
    if "refused" not in answer:
        yield f"accepted, and it is invalid ({entry['code']}: {entry['fault']})"
    elif not any_code and answer["refused"] != entry["code"]:
        yield f"refused for {answer['refused']}, expected {entry['code']} ({entry['fault']})"


def main(arguments=None):
    """Ask the reader about all files, and print what it takes wrongly."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", action="store_true", help="start the reader once; it reads lines from stdin")
    parser.add_argument("--any-code", action="store_true", help="a reader may refuse an invalid file for any code")
    parser.add_argument("--skip", action="append", default=[], metavar="CODE", help="leave out files of this code")
    parser.add_argument("--only", metavar="TEXT", help="only files whose path contains this text")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one file, without --batch")
    parser.add_argument("reader", nargs="+", help="the command of the reader, after --")
    options = parser.parse_args(arguments)
    manifest = json.loads((KIT / "files.json").read_text(encoding="utf-8"))
    batch = None
    try:
        batch = Batch(options.reader) if options.batch else None
        asked, wrong = 0, 0
        for entry in [*manifest["valid"], *manifest["invalid"]]:
            code = entry.get("code")
            if code in options.skip or (options.only and options.only not in entry["file"]):
                continue
            data = (KIT / entry["file"]).read_bytes()
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise SystemExit(f"{entry['file']}: this file of the kit is damaged; get it again")
            paths = [str(KIT / name) for name in [entry["file"], *entry.get("references", [])]]
            try:
                answer = batch.ask(paths) if batch else ask_once(options.reader, paths, options.timeout)
                faults = list(
                    faults_of_invalid(entry, answer, options.any_code) if code else faults_of_valid(entry, answer)
                )
            except ReaderFailed as failed:
                faults = [str(failed)]
            asked, wrong = asked + 1, wrong + bool(faults)
            for fault in faults:
                print(f"{entry['file']}: {fault}")
        print(f"{asked - wrong} of {asked} files right")
        return int(wrong > 0 or asked == 0)
    except OSError as error:
        print(f"{options.reader[0]}: {error}", file=sys.stderr)
        return 2
    finally:
        if batch:
            batch.close()


if __name__ == "__main__":
    sys.exit(main())
