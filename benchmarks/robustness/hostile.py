"""Small files and answers made to take unbounded time or memory, or to end in a traceback.

    python benchmarks/robustness/hostile.py [--only TEXT ...]

About a hundred cases: extended xyz, other files of structures, Parquet, SQLite, YAML, JSON of data
sets and models, and answers of a folder hub over http on 127.0.0.1. Each is read in a process of
its own, as the command that meets such a file would. It must be refused with one clear error, or be
read, within 5 s of processor time and 500 MB. An http case has 30 s by the clock, since a hub that
does not answer is asked again.

Writes results/hostile.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import socket
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from world import (
    call,
    evenfield,
    make_in_a_fork,
    make_world,
    no_network,
    prepare,
    print_table,
    write_result,
)

from evenfield import model_zoo
from evenfield.core.settings import load_settings
from evenfield.data_pipelines.stream.collection import Collection
from evenfield.data_pipelines.structure import SPLITS
from evenfield.pretrain.config import PretrainConfig


CPU_SECONDS = 5.0
MEMORY = 500 << 20
HTTP_SECONDS = 30.0
DEEP = 100_000  # levels of nesting
ENDLESS = 1 << 30  # bytes of an answer without an end

Case = Callable[[Path], str]


# --- what reads the files


def convert(file: Path) -> str:
    out = file.with_name("out")
    words = ["data", "convert", str(file), str(out), "level_of_theory=made"]
    evenfield([*words, "--trust-units", "--workers", "1"])
    return "converted"


def inspect_levels(file: Path) -> str:
    """Convert without a level of theory, then show the names that the file states."""
    out = file.with_name("out")
    words = ["data", "convert", str(file), str(out), "split_by=structure", "skip_bad=true"]
    evenfield([*words, "--trust-units", "--workers", "1"])
    evenfield(["data", "census", str(out)])
    evenfield(["data", "inspect", str(out)])
    return "shown"


def read_settings(file: Path) -> str:
    load_settings(PretrainConfig, file)
    return "read"


def read_data(folder: Path) -> str:
    collection = Collection([str(folder)])
    collection.census()
    for split in SPLITS:
        if collection.num_structures(split):
            for _ in collection.structures(split):
                pass
    return "read"


def load(folder: Path) -> str:
    model_zoo.load(folder)
    return "loaded"


# --- extended xyz


FRAME = 'Properties=species:S:1:pos:R:3 energy=1 pbc="F F F"'
ATOM = "H 0 0 0"


def xyz(count: str = "1", comment: str = FRAME, atoms: str = ATOM) -> bytes:
    return f"{count}\n{comment}\n{atoms}\n".encode()


def xyz_cases() -> dict[str, bytes]:
    """Name -> content."""
    properties = "Properties=species:S:1:pos:R:{} energy=1"
    long = 55_000
    counts = ["+9999999999", "99999999999", "-1", "1e9", "0x7fffffff", "1_000_000_000", "nan", ""]
    counts += ["\u0661", "9" * 5000, "1 1", "1.0"]
    widths = ["+900000000", "900000000", "-1", "0", "1_000_000", "9" * 5000, "x"]
    cases = {f"count {count[:12]!r}": xyz(count) for count in counts}
    cases |= {f"columns {width[:12]!r}": xyz(comment=properties.format(width)) for width in widths}
    cases |= {
        "properties again and again": xyz(comment="Properties=" * (long // 11)),
        "colons": xyz(comment="Properties=" + ":" * long),
        "columns of many names": xyz(
            comment="Properties=species:S:1:pos:R:3" + "".join(f":a{k}:R:1" for k in range(9000))
        ),
        "one name many times": xyz(comment="Properties=species:S:1" + ":pos:R:3" * 7000),
        "text of 50 million columns": xyz(comment="Properties=species:S:50000000:pos:R:3"),
        "open quote": xyz(comment=FRAME + ' a="' + "x" * long),
        "quotes": xyz(comment=FRAME + ' a="' * (long // 4)),
        "backslashes": xyz(comment=FRAME + ' a="' + "\\" * long),
        "equals": xyz(comment="=" * long),
        "blanks": xyz(comment=" " * long + "=" + " " * long),
        "open brackets": xyz(comment=FRAME + " a=" + "[" * long),
        "open braces": xyz(comment=FRAME + " a={" + "{" * long),
        "deep json": xyz(comment=FRAME + ' a="_JSON ' + "[" * long + '"'),
        "ten thousand keys": xyz(comment=FRAME + "".join(f" k{k}=1" for k in range(10_000))),
        "one key ten thousand times": xyz(comment=FRAME + " k=1" * 10_000),
        "energy of 400 digits": xyz(comment=FRAME.replace("energy=1", "energy=" + "9" * 400)),
        "energy is nan": xyz(comment=FRAME.replace("energy=1", "energy=nan")),
        "lattice of 1e300": xyz(comment=FRAME + ' Lattice="1e300 0 0 0 1e300 0 0 0 1e300"'),
        "lattice of zeros": xyz(comment=FRAME.replace("F F F", "T T T") + ' Lattice="' + "0 " * 9),
        "lattice of nan": xyz(comment=FRAME.replace("F F F", "T T T") + ' Lattice="' + "nan " * 9),
        "tiny cell": xyz(
            comment=FRAME.replace("F F F", "T T T") + ' Lattice="1e-4 0 0 0 1e-4 0 0 0 1e-4"'
        ),
        "position of 1e300": xyz(atoms="H 1e300 0 0"),
        "position is inf": xyz(atoms="H inf 0 0"),
        "element of 50 kB": xyz(atoms="H" * long + " 0 0 0"),
        "zero bytes": b"\0" * long,
        "no text": bytes(range(128, 256)) * 400,
        "newlines": b"\n" * long,
        "a line of 2 MB": b"1 " * 1_000_000,
        "other byte order": xyz().decode().encode("utf-16"),
        "many empty frames": b"0\n\n" * 20_000,
        "half a surrogate": xyz(comment=FRAME + " a=\\ud800"),
    }
    return cases


def level_cases() -> dict[str, bytes]:
    """Names of levels of theory that a terminal or a figure could take for commands."""
    levels = {
        "markup": "[/bad]",
        "mathtext": "$\\\\badmacro{$",
        "terminal title": "\x1b]0;owned\x07",
        "erased line": "PBE\x1b[2K\x1b[1A",
        "override of direction": "\u202eEBP",
        "level of 20 kB": "x" * 20_000,
        "path": "../../etc/passwd",
    }
    cases = {}
    for name, level in levels.items():
        frames = []
        for k in range(12):
            comment = f'{FRAME} structure_id=s{k} level_of_theory="{level}"'
            frames.append(xyz(comment=comment).decode())
        cases[name] = "".join(frames).encode()
    return cases


# --- other files of structures


def garbage(path: Path) -> None:
    path.write_bytes(b"\x93" + b"garbage" * 4000)


def zip_bomb(path: Path) -> None:
    """300 MB of zeros in 300 kB."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(b"\0" * (1 << 20))


def frames_bomb(path: Path) -> None:
    """A frame of 10 million atoms in some 400 kB."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(f"10000000\n{FRAME}\n".encode())
        for _ in range(100):
            file.write(f"{ATOM}\n".encode() * 100_000)


def trajectory(path: Path) -> None:
    """A .traj file whose header states far more frames than it has."""
    header = b"- of Ulm" + b"ASE-Trajectory".ljust(16)
    numbers = (3).to_bytes(8, "little") + (1 << 40).to_bytes(8, "little")
    path.write_bytes(header + numbers + (48).to_bytes(8, "little") + b"\xff" * 64)


def endless_database(path: Path) -> None:
    """The table of structures is a view that never ends."""
    with sqlite3.connect(path) as database:
        database.execute(
            "CREATE VIEW systems AS WITH RECURSIVE endless(id) AS "
            "(SELECT 1 UNION ALL SELECT id + 1 FROM endless) SELECT * FROM endless"
        )
        database.execute("CREATE TABLE information (name TEXT, value TEXT)")
        database.execute("INSERT INTO information VALUES ('version', '9')")


def empty_database(path: Path) -> None:
    sqlite3.connect(path).close()
    path.write_bytes(b"SQLite format 3\0" + b"\0" * 4080)


def deep_json(path: Path) -> None:
    path.write_text("[" * DEEP)


def long_number(path: Path) -> None:
    path.write_text('{"1": {"numbers": ' + "9" * 6000 + "}}")


def parquet_garbage(path: Path) -> None:
    path.write_bytes(b"PAR1" + b"\0" * 1000 + b"PAR1")


def parquet_long_footer(path: Path) -> None:
    path.write_bytes(b"PAR1" + b"\xff" * 64 + (0x7FFFFFFF).to_bytes(4, "little") + b"PAR1")


def parquet_bomb(path: Path) -> None:
    """50 million rows of one number in some kB."""
    column = pa.array(np.ones(1_000_000))
    schema = pa.schema({"energy": pa.float64()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        table = pa.table({"energy": column})
        for _ in range(50):
            writer.write_table(table)


def parquet_long_list(path: Path) -> None:
    """One structure with 50 million atoms, all alike."""
    atoms = pa.array(np.ones(50_000_000, np.uint8))
    numbers = pa.ListArray.from_arrays(pa.array([0, len(atoms)], pa.int32()), atoms)
    pq.write_table(pa.table({"atomic_numbers": numbers}), path, compression="zstd")


def parquet_columns(path: Path) -> None:
    pq.write_table(pa.table({f"c{k}": [1] for k in range(20_000)}), path)


FILES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "garbage as extxyz": ("a.extxyz", garbage),
    "garbage as traj": ("a.traj", garbage),
    "garbage as db": ("a.db", garbage),
    "garbage as aselmdb": ("a.aselmdb", garbage),
    "garbage as cif": ("a.cif", garbage),
    "garbage as gz": ("a.extxyz.gz", garbage),
    "gz of zeros": ("a.extxyz.gz", zip_bomb),
    "gz of 10 million atoms": ("a.extxyz.gz", frames_bomb),
    "trajectory of 2^40 frames": ("a.traj", trajectory),
    "database without an end": ("a.db", endless_database),
    "database of zeros": ("a.db", empty_database),
    "deep JSON database": ("a.json", deep_json),
    "number of 6000 digits": ("a.json", long_number),
    "parquet of zeros": ("a.parquet", parquet_garbage),
    "parquet with a long footer": ("a.parquet", parquet_long_footer),
    "parquet of 50 million rows": ("a.parquet", parquet_bomb),
    "parquet of 50 million atoms": ("a.parquet", parquet_long_list),
    "parquet of 20,000 columns": ("a.parquet", parquet_columns),
}


# --- settings


def aliases(levels: int, merge: bool = False) -> str:
    """Each level holds the one before nine times."""
    lines = ["a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 9)
        content = f"{{<<: [{before}]}}" if merge else f"[{before}]"
        lines.append(f"a{level}: &a{level} {content}")
    return "\n".join(lines)


SETTINGS = {
    "aliases of aliases": aliases(9),
    "aliases in a setting": aliases(8) + "\nmax_steps: *a7",
    "merged aliases": aliases(9, merge=True),
    "list that holds itself": "data: &a [*a]",
    "mapping that holds itself": "model: &a {channels: *a}",
    "deep lists": "data: " + "[" * DEEP,
    "deep mappings": "data: " + "{a: " * 5000,
    "deep indents": "\n".join(" " * depth + "a:" for depth in range(2000)),
    "python object": "data: !!python/object/apply:os.system ['true']",
    "python name": "data: !!python/name:os.system",
    "unknown tag": "data: !include /etc/passwd",
    "number of 6000 digits": "max_steps: " + "9" * 6000,
    "binary of 1 MB": "data: !!binary " + "A" * 1_000_000,
    "sexagesimal": "max_steps: " + "1:" * 20_000 + "1",
    "date": "max_steps: 9999-99-99",
    "keys that are lists": "? [a, b]\n: 1",
    "two documents": "a: 1\n---\nb: 2",
    "zero byte": "data: a\0b",
    "a text": "data",
    "many keys": "\n".join(f"k{k}: 1" for k in range(20_000)),
    "flow of commas": "data: [" + "," * 50_000,
    "open quote": 'data: "' + "x" * 50_000,
    "infinite": "max_steps: .inf",
}


# --- JSON of data sets and models


def json_cases(good: dict[str, Any]) -> dict[str, str]:
    """Name -> text in the place of a JSON object."""
    many = {str(number): 0 for number in range(300_000)}
    return {
        "deep": '{"a":' * DEEP,
        "list": "[1, 2]",
        "number of 6000 digits": json.dumps(good)[:-1] + ', "more": ' + "9" * 6000 + "}",
        "many keys": json.dumps(many),
        "many empty lists": json.dumps(good | {"more": [[]] * 1_000_000}),
        "infinite": json.dumps(good)[:-1] + ', "more": 1e999}',
        "half": json.dumps(good)[: len(json.dumps(good)) // 2],
        "texts for numbers": json.dumps(dict.fromkeys(good, "8192")),
        "nothing": "",
    }


def shards_outside(info: dict[str, Any]) -> dict[str, Any]:
    """The account names files outside the folder."""
    entry = next(iter(info["shards"].values()))
    return info | {"shards": {"../../secret.parquet": entry}}


# --- answers of a hub


class HostileHub(BaseHTTPRequestHandler):
    """The first part of a path chooses how it answers."""

    def do_GET(self) -> None:
        getattr(self, "_" + self.path.split("/")[1])()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _start(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def _endless(self) -> None:
        self._start()
        self._send_zeros(ENDLESS)

    def _stated(self) -> None:
        self._start(Content_Length=str(1 << 40))
        self._send_zeros(ENDLESS)

    def _negative(self) -> None:
        self._start(Content_Length="-1")

    def _gzip(self) -> None:
        content = gzip.compress(b" " * (256 << 20))
        self._start(Content_Encoding="gzip", Content_Length=str(len(content)))
        self.wfile.write(content)

    def _drip(self) -> None:
        self._start(Content_Length="1000")
        for _ in range(100):
            self.wfile.write(b"a")
            self.wfile.flush()
            time.sleep(1.0)

    def _loop(self) -> None:
        self._start(302, Location=self.path)

    def _elsewhere(self) -> None:
        self._start(302, Location="file:///etc/passwd")

    def _failing(self) -> None:
        self._start(503)

    def _page(self) -> None:
        self._start(Content_Type="text/html")
        self.wfile.write(b"<html>log in</html>" * 100)

    def _headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for _ in range(1 << 20):
            self.wfile.write(b"X-Filling: " + b"x" * 100 + b"\r\n")

    def _escape(self) -> None:
        self._start(404)
        self.wfile.write(b"\x1b]0;owned\x07[/bad]")

    def _send_zeros(self, number: int) -> None:
        for _ in range(number >> 20):
            self.wfile.write(b"\0" * (1 << 20))

    def handle(self) -> None:
        # clients that go away in the middle are what is hoped for
        try:
            super().handle()
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


ANSWERS = [
    "endless",
    "stated",
    "negative",
    "gzip",
    "drip",
    "loop",
    "elsewhere",
    "failing",
    "page",
    "headers",
    "escape",
]


@contextmanager
def hostile_hub() -> Iterator[str]:
    """Address of the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HostileHub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()


@contextmanager
def silent_port() -> Iterator[str]:
    """Connections are taken and nothing is ever said."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


# --- the cases


def text_case(file: str, content: bytes, read: Case) -> Case:
    """Write a file, then read it."""

    def case(work: Path) -> str:
        (work / file).write_bytes(content)
        return read(work / file)

    return case


def copy_case(good: Path, file: str, content: str, read: Case) -> Case:
    """Replace a file in a copy of a good folder, then read that."""

    def case(work: Path) -> str:
        shutil.copytree(good, work / "copy")
        (work / "copy" / file).write_text(content)
        return read(work / "copy")

    return case


def http_case(address: str) -> Case:
    def case(work: Path) -> str:
        model_zoo.load("me/x", folder_hub=address)
        return "loaded"

    return case


def is_chosen(name: str, only: list[str]) -> bool:
    """Whether a case is to be run; all are unless some are named."""
    return not only or any(part in name for part in only)


def file_cases(folder: Path, only: list[str]) -> dict[str, Case]:
    """Files of structures and of settings; name -> what makes and reads one."""
    cases = {}
    for name, content in xyz_cases().items():
        cases[f"extxyz: {name}"] = text_case("a.extxyz", content, convert)
    for name, content in level_cases().items():
        cases[f"level: {name}"] = text_case("a.extxyz", content, inspect_levels)
    for name, settings in SETTINGS.items():
        cases[f"yaml: {name}"] = text_case("a.yaml", settings.encode(), read_settings)

    # made once: some take longer to make than to refuse
    for name, (file, make) in FILES.items():
        if not is_chosen(f"file: {name}", only):
            continue
        made = folder / name.replace(" ", "-")
        made.mkdir()
        make(made / file)
        cases[f"file: {name}"] = text_case(file, (made / file).read_bytes(), convert)
    return cases


def folder_cases(world: Path) -> dict[str, Case]:
    """JSON in folders of data sets and models."""
    data = world / "data-0"
    model = world / "run" / "model"
    cases = {}
    for folder, names, read in (
        (data, ("dataset_info.json", "census.json"), read_data),
        (model, ("manifest.json", "config.json"), load),
    ):
        for file in names:
            good = json.loads((folder / file).read_text())
            for name, content in json_cases(good).items():
                cases[f"{file}: {name}"] = copy_case(folder, file, content, read)

    info = json.loads((data / "dataset_info.json").read_text())
    outside = json.dumps(shards_outside(info))
    cases["dataset_info.json: outside"] = copy_case(data, "dataset_info.json", outside, read_data)
    return cases


def http_cases(hub: str, silent: str) -> dict[str, Case]:
    cases = {f"http: {name}": http_case(f"{hub}/{name}") for name in ANSWERS}
    cases["http: silent port"] = http_case(silent)
    return cases


def judged(name: str, work: Path, case: Case) -> tuple[str, dict[str, Any]]:
    """`refused`, `read`, or in capitals what went wrong; and the figures."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    is_http = name.startswith("http")
    found = call(lambda: case(work), 2 * HTTP_SECONDS)

    outcome = {"done": "read", "refused": "refused"}.get(found.kind, found.kind.upper())
    seconds = found.seconds if is_http else found.cpu_seconds
    if seconds > (HTTP_SECONDS if is_http else CPU_SECONDS):
        outcome = "TOO LONG"
    elif found.memory > MEMORY:
        outcome = "TOO LARGE"
    elif any(ord(letter) < 32 for letter in found.value):
        outcome = "CONTROL CODES"
    figures = {"seconds": round(seconds, 2), "MB": found.memory >> 20, "found": found.value}
    return outcome, figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="parts of names")
    parser.add_argument("--result", type=Path, help="default: results/hostile.json")
    options = parser.parse_args()
    prepare()

    outcomes: dict[str, Counter[str]] = {}
    failures = []
    slowest: list[tuple[float, str]] = []
    with (
        tempfile.TemporaryDirectory() as name,
        no_network(),
        hostile_hub() as hub,
        silent_port() as silent,
    ):
        world = Path(name) / "world"
        made_files = Path(name) / "made"
        world.mkdir()
        made_files.mkdir()
        make_in_a_fork(make_world, world)

        cases = file_cases(made_files, options.only) | folder_cases(world) | http_cases(hub, silent)
        for case_name, case in cases.items():
            if not is_chosen(case_name, options.only):
                continue
            kind = case_name.split(":")[0]
            outcome, figures = judged(case_name, Path(name) / "work", case)
            outcomes.setdefault(kind, Counter())[outcome] += 1
            slowest.append((figures["seconds"], case_name))
            if outcome not in ("refused", "read"):
                failures.append({"case": case_name, "outcome": outcome} | figures)
                print(f"{outcome} {case_name}: {figures}", flush=True)

    table = {kind: dict(counts) for kind, counts in sorted(outcomes.items())}
    print_table(table)
    content = {
        "command": "python benchmarks/robustness/hostile.py",
        "cases": sum(sum(counts.values()) for counts in outcomes.values()),
        "limits": f"{CPU_SECONDS:g} s of processor time ({HTTP_SECONDS:g} s by the clock for "
        f"http), {MEMORY >> 20} MB",
        "failures": len(failures),
        "slowest": sorted(slowest, reverse=True)[:5],
        "outcomes": table,
        "failed": failures,
    }
    write_result("hostile", content, options.result)


if __name__ == "__main__":
    main()
