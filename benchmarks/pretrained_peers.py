"""A pretrained model and what a user would pick instead, through ASE on the same files: one table.

    python benchmarks/pretrained_peers.py OUT.json --data FOLDER --corpus FOLDER --work FOLDER
        [--model REF[:LEVEL] ...] [--peer chgnet=PYTHON ...] [--parts errors curves checks ...]

FOLDER of --data holds multi_element_longtail.extxyz.gz and acwf_vasp.extxyz.gz; that of --corpus is
`evenfield data corpus evenfield-1`, whose splits say what is test. A peer is a function of
peer_calculators.py or module:name, and runs in the environment of PYTHON, which has evenfield too.
Answers are kept in --work and rows in OUT.json: a stopped run goes on, and a new row is added to
those of others, whose parts are not made again unless --again is given.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
from ase import Atoms
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import GPa

from evenfield.diagnostics.checks.crystals import NOT_COMPARABLE, TIE
from evenfield.diagnostics.sanity.equation_of_state import fit_birch_murnaghan
from evenfield.model_zoo.hub.load import load


HERE = Path(__file__).resolve().parent
PARTS = ("errors", "curves", "checks", "sanity", "speed")
LONGTAIL = "multi_element_longtail"
ACWF = "acwf_vasp"

# Structures of each element in the fit of the shifts.
SHIFT_STRUCTURES = 15
# Iterations of the fit, and the residual in eV/atom below which it is one of least squares.
SHIFT_ROUNDS = 100
SMALL_RESIDUAL = 1e-3
# Rounds of the comparison of speed, and calls of a turn.
ROUNDS = 7
CALLS = 3

GROUPS = ("rare", "middle", "common")
Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """A calculator: its name in the table, its interpreter, and the words that name it."""

    name: str
    python: str
    words: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Its name without what file systems dislike."""
        return re.sub(r"[^\w.-]+", "-", self.name)

    def command(self, *words: str) -> list[str]:
        """The command of its worker."""
        worker = str(HERE / "pretrained_worker.py")
        return [self.python, "-W", "ignore", worker, *self.words, *words]

    def run(self, *words: str) -> None:
        """Have the worker do one part; RuntimeError if it dies."""
        command = self.command(*words)
        subprocess.run(command, check=True, env=one_thread(), stdout=subprocess.DEVNULL)


def one_thread() -> dict[str, str]:
    """The environment of a worker."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def sides(models: list[str], peers: list[str]) -> list[Side]:
    """Ours first."""
    found = []
    for text in models:
        reference, colon, level = text.rpartition(":")
        if not colon or "/" in level:
            reference, level = text, ""
        words = ["--model", reference]
        if level:
            words += ["--level", level]
        found.append(Side(_short_name(reference, level), sys.executable, tuple(words)))
    for text in peers:
        name, _, python = text.partition("=")
        address = name if ":" in name else f"peer_calculators:{name}"
        words = ["--calculator", address]
        found.append(Side(name, python or sys.executable, tuple(words)))
    return found


def _short_name(reference: str, level: str) -> str:
    """name@revision:level, so that rows and answers of other weights are never taken for these."""
    name, _, revision = load(reference).reference.partition("@")
    short = f"{Path(name).name}@{revision[:8]}"
    return f"{short}:{level}" if level else short


# --- the files


@dataclass(frozen=True)
class Corpus:
    """What the corpus of our model says about the files: id -> split, and training structures."""

    splits: dict[str, str]
    counts: Counter[str]

    @classmethod
    def read(cls, folder: Path) -> Corpus:
        """Ids are source/file-number, in the order of the file."""
        splits = {}
        counts: Counter[str] = Counter()
        for path in sorted(folder.glob("*.parquet")):
            split = path.name.partition("-")[0]
            table = pq.read_table(path, columns=["structure_id", "atomic_numbers"])
            for name in table["structure_id"].to_pylist():
                splits[name] = split
            if split == "train":
                for numbers in table["atomic_numbers"].to_pylist():
                    counts.update(chemical_symbols[number] for number in set(numbers))
        return cls(splits, counts)

    def split(self, source: str, number: int) -> str | None:
        """train, valid or test; None for a structure that the corpus left out."""
        return self.splits.get(f"{source}/{source}-{number}")

    def group(self, symbol: str) -> str:
        """rare, middle or common: thirds of the elements by training structures."""
        ordered = sorted(self.counts, key=lambda each: (self.counts[each], each))
        if symbol not in self.counts:
            return GROUPS[0]
        return GROUPS[3 * ordered.index(symbol) // len(ordered)]


def read_source(folder: Path, source: str) -> list[Atoms]:
    """All structures of a file, in its order, with the labels in `info` and `arrays`."""
    # unpacked first: ASE jumps within the file, which is slow where it is compressed
    text = gzip.decompress((folder / f"{source}.extxyz.gz").read_bytes()).decode()
    return ase.io.read(io.StringIO(text), ":", format="extxyz")


def bare(atoms: Atoms) -> Atoms:
    """What a calculator gets."""
    return Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


# --- energies, forces and stresses


@dataclass(frozen=True)
class ErrorTask:
    """Test structures, and those that the shifts of the energies are fitted to."""

    test: list[Atoms]
    fit: list[Atoms]

    @classmethod
    def make(cls, frames: list[Atoms], corpus: Corpus, thin: dict[str, int]) -> ErrorTask:
        """Test is what both the file and the corpus call so.

        thin: beginning of the names of data sets -> structures that are kept of each, evenly
        spread. The fit has the smallest validation and training structures, one of a composition
        and so many that each element is in `SHIFT_STRUCTURES`, as far as there are any.
        """
        tests: dict[str, list[Atoms]] = defaultdict(list)
        others = []
        for number, atoms in enumerate(frames):
            split = atoms.info["split"]
            if corpus.split(LONGTAIL, number) != split:
                continue
            if split == "test":
                tests[atoms.info["dataset"]].append(atoms)
            else:
                others.append(atoms)

        test = []
        for name, found in tests.items():
            sizes = [size for start, size in thin.items() if name.startswith(start)]
            size = min([*sizes, len(found)])
            chosen = np.linspace(0, len(found) - 1, size).round().astype(int)
            test += [found[index] for index in chosen]

        fit = []
        counts: Counter[str] = Counter()
        compositions: set[str] = set()
        for atoms in sorted(others, key=len):
            elements = set(atoms.symbols)
            is_wanted = any(counts[symbol] < SHIFT_STRUCTURES for symbol in elements)
            # frames of one run would answer for all of an element's materials
            if is_wanted and atoms.info["group"] not in compositions:
                fit.append(atoms)
                counts.update(elements)
                compositions.add(atoms.info["group"])
        return cls(test, fit)

    def structures(self) -> list[Atoms]:
        """Test first."""
        return [bare(atoms) for atoms in self.test + self.fit]

    def row(self, answers: list[Any]) -> Row:
        """Errors by data set."""
        tested = answers[: len(self.test)]
        shifts = fit_shifts(self.fit, answers[len(self.test) :])
        by_set: dict[str, list[Row]] = defaultdict(list)
        failed: Counter[str] = Counter()
        for atoms, answer in zip(self.test, tested, strict=True):
            names = (atoms.info["dataset"], "all")
            for name in names:
                if answer is None:
                    failed[name] += 1
                else:
                    by_set[name].append(errors_of(atoms, answer, shifts))
        table = {name: summary(rows) | {"failed": failed[name]} for name, rows in by_set.items()}
        return {"sets": table, "fit_structures": len(self.fit), "shifts_eV": shifts}


def fit_shifts(frames: list[Atoms], answers: list[Any]) -> dict[str, float]:
    """The energy in eV to add for each atom of an element, with the least mean absolute error.

    Least absolute deviations of the energy per atom, by repeated weighted least squares: a few
    strongly compressed structures must not decide. Elements that are absent have no entry.
    """
    known = [
        (atoms, answer) for atoms, answer in zip(frames, answers, strict=True) if answer is not None
    ]
    symbols = sorted({symbol for atoms, _ in known for symbol in atoms.symbols})
    place = {symbol: index for index, symbol in enumerate(symbols)}
    shares = np.zeros((len(known), len(symbols)))
    residuals = np.empty(len(known))
    for row, (atoms, answer) in enumerate(known):
        for symbol in atoms.symbols:
            shares[row, place[symbol]] += 1 / len(atoms)
        residuals[row] = (atoms.info["REF_energy"] - answer["energy"]) / len(atoms)

    weights = np.ones(len(known))
    shifts = np.zeros(len(symbols))
    for _ in range(SHIFT_ROUNDS):
        root = np.sqrt(weights)
        # the least norm where elements only occur together
        shifts = np.linalg.lstsq(shares * root[:, None], residuals * root, rcond=1e-6)[0]
        left = np.abs(residuals - shares @ shifts)
        weights = 1 / np.maximum(left, SMALL_RESIDUAL)
    return dict(zip(symbols, map(float, shifts), strict=True))


def errors_of(atoms: Atoms, answer: Row, shifts: dict[str, float]) -> Row:
    """Absolute errors of one structure; the stress has none where its label is masked."""
    forces = np.abs(np.array(answer["forces"]) - atoms.arrays["REF_forces"])
    raw = (answer["energy"] - atoms.info["REF_energy"]) / len(atoms)
    shift = np.mean([shifts.get(symbol, 0.0) for symbol in atoms.symbols])
    found = {
        "force_sum": float(forces.sum()),
        "components": forces.size,
        "energy": abs(raw),
        "shifted": abs(raw + float(shift)),
    }
    label = atoms.info.get("REF_stress")
    is_suspect = atoms.info.get("stress_suspect") in (True, "T")
    if label is not None and not is_suspect:
        expected = np.array(label, float)
        if expected.shape == (6,):
            expected = voigt_6_to_full_3x3_stress(expected)
        difference = np.abs(np.array(answer["stress"]) - expected.reshape(3, 3)) / GPa
        # the six entries, each once
        found["stress"] = float(difference[np.triu_indices(3)].mean())
    return found


def summary(rows: list[Row]) -> Row:
    """Mean absolute errors of a data set."""
    stresses = [row["stress"] for row in rows if np.isfinite(row.get("stress", np.nan))]
    return {
        "structures": len(rows),
        "force_mae_eV_A": sum(r["force_sum"] for r in rows) / sum(r["components"] for r in rows),
        "energy_mae_meV_atom": 1000 * float(np.mean([row["shifted"] for row in rows])),
        "energy_mae_unshifted_meV_atom": 1000 * float(np.mean([row["energy"] for row in rows])),
        "stress_mae_GPa": float(np.mean(stresses)) if stresses else None,
        "stress_structures": len(stresses),
    }


# --- equations of state


@dataclass(frozen=True)
class Phase:
    """A crystal of ACWF with its fitted curve; held_out: it is in the corpus's test split."""

    name: str
    element: str
    atoms: Atoms
    is_held_out: bool
    volume: float
    bulk_modulus: float
    energy: float

    @property
    def is_unary(self) -> bool:
        """Whether it is one of fcc, bcc, simple cubic and diamond."""
        return "-X/" in self.name


@dataclass(frozen=True)
class CurveTask:
    """All phases of the file."""

    phases: list[Phase]
    groups: dict[str, str]

    @classmethod
    def make(cls, frames: list[Atoms], corpus: Corpus, max_phases: int | None) -> CurveTask:
        """Seven volumes of each phase; held-out phases first, then those of one element."""
        curves: dict[str, list[int]] = defaultdict(list)
        for number, atoms in enumerate(frames):
            curves[atoms.info["group"]].append(number)

        phases = []
        for name, numbers in curves.items():
            ordered = sorted(numbers, key=lambda number: frames[number].get_volume())
            points = [frames[number] for number in ordered]
            volumes = np.array([atoms.get_volume() / len(atoms) for atoms in points])
            energies = np.array([atoms.info["REF_energy"] / len(atoms) for atoms in points])
            fit = fit_birch_murnaghan(volumes, energies)
            held_out = all(corpus.split(ACWF, number) == "test" for number in numbers)
            # acwf/Ag-X/FCC, acwf/Ag-XO2/...
            short = name.removeprefix("acwf/")
            element = short.partition("-")[0]
            middle = bare(points[len(points) // 2])
            values = (fit.volume, fit.bulk_modulus, fit.energy)
            phases.append(Phase(short, element, middle, held_out, *values))

        phases.sort(key=lambda phase: (not phase.is_held_out, not phase.is_unary))
        groups = {phase.element: corpus.group(phase.element) for phase in phases}
        return cls(phases[:max_phases], groups)

    def structures(self) -> list[Atoms]:
        """The middle volume of each phase."""
        return [phase.atoms for phase in self.phases]

    def row(self, answers: list[Any]) -> Row:
        """Errors of volumes, bulk moduli and the lowest structure of the elements."""
        errors = []
        for phase, answer in zip(self.phases, answers, strict=True):
            if answer is None:
                continue
            errors.append(
                {
                    "phase": phase.name,
                    "element": phase.element,
                    "group": self.groups[phase.element],
                    "held_out": phase.is_held_out,
                    "comparable": phase.element not in NOT_COMPARABLE,
                    "volume_percent": 100 * (answer["volume"] / phase.volume - 1),
                    "modulus_percent": 100 * (answer["bulk_modulus"] / phase.bulk_modulus - 1),
                }
            )
        failed = len(self.phases) - len(errors)
        return {"failed": failed, "lowest_is_right": self._lowest(answers), "phases": errors}

    def _lowest(self, answers: list[Any]) -> dict[str, bool]:
        """Element -> whether its lowest unary is that of the reference, or as good as it."""
        expected: dict[str, dict[str, float]] = defaultdict(dict)
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for phase, answer in zip(self.phases, answers, strict=True):
            if phase.is_unary and answer is not None:
                expected[phase.element][phase.name] = phase.energy
                if np.isfinite(answer["energy"]):
                    found[phase.element][phase.name] = answer["energy"]
        verdicts = {}
        for element, energies in expected.items():
            if len(energies) < 4 or element in NOT_COMPARABLE:
                continue
            own = found[element]
            lowest = min(own, key=lambda name: own[name]) if own else None
            above = np.inf if lowest is None else energies[lowest] - min(energies.values())
            verdicts[element] = bool(1000 * above <= TIE)
        return verdicts


def _choices(errors: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    """comparable: without gases, magnetic metals and open f shells, of which ACWF says little."""
    yield "held_out", [row for row in errors if row["held_out"]]
    yield "held_out_comparable", [r for r in errors if r["held_out"] and r["comparable"]]
    yield "all", errors
    yield "all_comparable", [row for row in errors if row["comparable"]]


def _by_group(errors: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    yield "all", errors
    for group in GROUPS:
        yield group, [row for row in errors if row["group"] == group]


def curves_in_common(row: Row, rows: dict[str, Row]) -> dict[str, float | None]:
    """Figures of equations of state, over the phases and elements that all calculators know."""
    if "curves" not in row:
        return {}
    others = [each["curves"] for each in rows.values() if "curves" in each]
    names = set.intersection(*({phase["phase"] for phase in each["phases"]} for each in others))
    elements = set.intersection(*(set(each["lowest_is_right"]) for each in others))

    found: dict[str, float | None] = {}
    phases = [phase for phase in row["curves"]["phases"] if phase["phase"] in names]
    for choice, chosen in _choices(phases):
        for group, members in _by_group(chosen):
            for key, value in curve_summary(members).items():
                found[f"curves, {choice}, {group}: {key}"] = value
    verdicts = [row["curves"]["lowest_is_right"][element] for element in sorted(elements)]
    found["curves: elements compared"] = len(verdicts)
    if verdicts:
        found["curves: right structure lowest, %"] = 100 * float(np.mean(verdicts))
    return found


def curve_summary(rows: list[Row]) -> Row:
    """Medians of absolute errors in percent; a crystal without a minimum is infinitely wrong."""

    def median(key: str) -> float | None:
        # null of the stored file becomes NaN
        values = np.array([row[key] for row in rows], float)
        found = float(np.median(np.where(np.isfinite(values), np.abs(values), np.inf)))
        return found if np.isfinite(found) else None

    without = sum(row["volume_percent"] is None or np.isnan(row["volume_percent"]) for row in rows)
    if not rows:
        return {"phases": 0}
    return {
        "phases": len(rows),
        "without_minimum": without,
        "volume_percent": median("volume_percent"),
        "modulus_percent": median("modulus_percent"),
    }


# --- speed


class Turns:
    """A worker that calls its calculator when it is asked to, and waits otherwise."""

    def __init__(self, side: Side) -> None:
        self.process = subprocess.Popen(
            side.command("speed"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=one_thread(),
        )
        self.answer()

    def answer(self) -> Row:
        """The next JSON object; RuntimeError if the worker has died."""
        for line in self.process.stdout:
            if line.startswith("{"):
                found: Row = json.loads(line)
                return found
        raise RuntimeError(f"{self.process.args}: the worker ended")

    def turn(self) -> float:
        """ms per atom."""
        self.process.stdin.write(json.dumps({"calls": CALLS}) + "\n")
        self.process.stdin.flush()
        return float(self.answer()["ms_per_atom"])

    def stop(self) -> None:
        """End the worker."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def speeds(chosen: list[Side], rounds: int) -> dict[str, Row]:
    """Processor ms per atom of each side, measured in turns; ratios to the first."""
    workers = {side.name: Turns(side) for side in chosen}
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in workers.items():
            times[name].append(worker.turn())
    for worker in workers.values():
        worker.stop()
    first = np.array(times[chosen[0].name])
    found = {}
    for name, values in times.items():
        ratios = np.array(values) / first
        found[name] = {
            "ms_per_atom": float(np.median(values)),
            "rounds": values,
            "compared_with": chosen[0].name,
            "ratio": float(np.median(ratios)),
        }
    return found


# --- a run


def answers_of(side: Side, part: str, structures: list[Atoms], work: Path) -> tuple[list[Any], Row]:
    """What a side says about structures, from its file or from its worker; and what it took."""
    task = work / f"{part}.traj"
    if not task.is_file():
        ase.io.write(task, structures)
    out = work / f"{side.file_name}.{part}.jsonl"
    side.run("answers" if part == "errors" else "curves", str(task), str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    if len(lines) != len(structures):
        raise SystemExit(f"{out}: {len(lines)} answers to {len(structures)} structures; remove it")
    seconds = sum(line["seconds"] for line in lines)
    return [line["answer"] for line in lines], {"processor_seconds": round(seconds, 1)}


def sanity_of(side: Side, work: Path, words: list[str]) -> Row:
    """The verdicts of `evenfield check sanity`."""
    folder = work / f"{side.file_name}.sanity"
    side.run("sanity", str(folder), *words)
    content = json.loads((folder / "sanity.json").read_text())
    return {key: content[key] for key in ("passed", "settings", "checks")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="REF[:LEVEL]")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME[=PYTHON]")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="make parts that OUT has once more")
    parser.add_argument(
        "--thin",
        nargs="*",
        default=[],
        metavar="START=N",
        help="test structures of data sets whose name starts so",
    )
    parser.add_argument("--max-phases", type=int, help="equations of state, held-out ones first")
    parser.add_argument("--sanity", nargs="*", default=["suite=quick"], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the comparison of speed")
    options = parser.parse_args()
    content = taken_up(options)
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = sides(options.model, options.peer)

    tasks: dict[str, ErrorTask | CurveTask] = {}
    corpus = Corpus.read(options.corpus)
    if "errors" in options.parts:
        thin = {name: int(size) for name, _, size in (w.partition("=") for w in options.thin)}
        tasks["errors"] = ErrorTask.make(read_source(options.data, LONGTAIL), corpus, thin)
    if "curves" in options.parts:
        frames = read_source(options.data, ACWF)
        tasks["curves"] = CurveTask.make(frames, corpus, options.max_phases)

    for part in [each for each in PARTS if each in options.parts and each != "speed"]:
        for side in chosen:
            row = content["rows"].setdefault(side.name, {})
            if part in row and not options.again:
                continue
            if part in tasks:
                task = tasks[part]
                found, cost = answers_of(side, part, task.structures(), options.work)
                row[part] = task.row(found) | cost
            elif part == "checks":
                out = options.work / f"{side.file_name}.checks.json"
                side.run("checks", str(out))
                row |= json.loads(out.read_text())
            else:
                row[part] = sanity_of(side, options.work, options.sanity)
            save(options.out, content)
    # in turns, so all sides are measured together whenever one of them is
    is_missing = any("speed" not in content["rows"].get(side.name, {}) for side in chosen)
    if "speed" in options.parts and chosen and (is_missing or options.again):
        for name, found in speeds(chosen, options.rounds).items():
            content["rows"].setdefault(name, {})["speed"] = found
        save(options.out, content)
    print(table(content["rows"]))


def taken_up(options: argparse.Namespace) -> Row:
    """The rows of an earlier run, which must have been made of the same structures."""
    settings = {
        "thin": options.thin,
        "max_phases": options.max_phases,
        "sanity": options.sanity,
    }
    if not options.out.is_file():
        return {"settings": settings, "rows": {}}
    content: Row = json.loads(options.out.read_text())
    if content["settings"] != settings:
        raise SystemExit(f"{options.out} was made with {content['settings']}; name another file")
    return content


def save(path: Path, content: Row) -> None:
    """NaN becomes null, as JSON demands."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, float):
            return float(f"{value:.6g}") if np.isfinite(value) else None
        return value

    path.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


# --- the table


def table(rows: dict[str, Row]) -> str:
    """Markdown: a line for each figure, a column for each calculator."""
    lines = ["| figure | " + " | ".join(rows) + " |", "|---" * (len(rows) + 1) + "|"]

    def add(what: str, cells: list[str]) -> None:
        if any(cells):
            lines.append(f"| {what} | " + " | ".join(cells) + " |")

    sets = sorted({n for row in rows.values() for n in row.get("errors", {}).get("sets", {})})
    for key, what in (
        ("force_mae_eV_A", "force MAE, eV/A"),
        ("energy_mae_meV_atom", "energy MAE, meV/atom"),
        ("stress_mae_GPa", "stress MAE, GPa"),
    ):
        for name in sets:
            found = [_at(row, "errors", "sets", name, key) for row in rows.values()]
            add(f"{name}: {what}", [_number(value) for value in found])

    summaries = [curves_in_common(row, rows) for row in rows.values()]
    for what in dict.fromkeys(name for summary in summaries for name in summary):
        add(what, [_number(summary.get(what)) for summary in summaries])

    add("simple checks passed", [passed_checks(row) for row in rows.values()])
    for name in sorted(
        {n for row in rows.values() for n in row.get("sanity", {}).get("checks", {})}
    ):
        cells = []
        for row in rows.values():
            verdict = _at(row, "sanity", "checks", name, "passed")
            cells.append({True: "passed", False: "FAILED", None: ""}[verdict])
        add(f"sanity: {name}", cells)
    for key, what in (("ms_per_atom", "ms per atom"), ("ratio", "times the time of the first")):
        add(what, [_number(_at(row, "speed", key)) for row in rows.values()])
    return "\n".join(lines)


def passed_checks(row: Row) -> str:
    """How many of the simple checks passed."""
    checks = row.get("checks")
    if checks is None:
        return ""
    return f"{sum(verdict == '' for verdict in checks.values())} of {len(checks)}"


def _at(row: Row, *keys: str) -> Any:
    found: Any = row
    for key in keys:
        found = (found or {}).get(key)
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
