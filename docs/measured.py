"""What docs/measurements/*.json say, for the tables and the charts made of them."""

import json
from pathlib import Path

MEASUREMENTS = Path(__file__).parent / "measurements"
BACKENDS = ("torch", "jax", "tensorflow")
NETWORKS = ("resnet20", "resnet20-projected", "resnet50")


def load(name: str) -> dict:
    """One file of measurements."""
    return json.loads((MEASUREMENTS / f"{name}.json").read_text())


def find(rows: list[dict], **wanted: str) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def measured(name: str) -> list[str]:
    """The backends that there is a file of this name for."""
    return [b for b in BACKENDS if (MEASUREMENTS / f"{b}-{name}.json").exists()]


def machine_line(machine: dict) -> str:
    """What the numbers were measured on, in one line."""
    names = ("device", "processor", "cores", "python", "keras", *BACKENDS)
    return ", ".join(f"{name} {machine[name]}" for name in names if name in machine)


def machines(name: str) -> list[str]:
    """What each backend's file of this name was measured on, once each."""
    lines = (machine_line(load(f"{b}-{name}")["machine"]) for b in measured(name))
    return [f"- {line}" for line in dict.fromkeys(lines)]


def one_line(machines: list[dict]) -> str:
    """What several files were measured on, in one line: together where they agree."""
    merged = {key: value for machine in machines for key, value in machine.items()}
    agree = all(
        machine[key] == merged[key]
        for machine in machines
        for key in machine.keys() - {"backend"}
    )
    return machine_line(merged) if agree else "; ".join(map(machine_line, machines))
