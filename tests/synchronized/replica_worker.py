"""Runs every case on this backend's engine, and saves what each replica got.

And the script of examples/distributed: what is asked of several processes is asked in
one start, because importing a framework takes as long as most of it.
"""

import contextlib
import faulthandler
import importlib
import multiprocessing
import os
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import replica_cases as cases

sys.path.append(str(Path(__file__).parents[2] / "examples" / "distributed"))
import _digits

BACKEND = keras.backend.backend()
# Half of those that the page's command makes: enough to learn, and to differ by.
_digits.STEPS = 24


def engine_of_backend():
    """The module, whose import starts the runtime on JAX and TensorFlow."""
    return importlib.import_module(f"replicas_{BACKEND}")


def main(folder, caught):
    """Writes `<rank>.npz` for each replica of this process, and `alone.npz`."""
    engine = engine_of_backend()
    more = run_groups(engine, folder)
    if more:  # a process that was only for these
        return
    alone = {k: one[0] for k, one in engine.trainings(cases.ALONE, alone=True).items()}
    engine.start()
    found = {rank: {} for rank in range(cases.REPLICAS)}
    add_operations(engine, cases.EVERY_CASE, found)
    trained = engine.trainings((*cases.TRAININGS, cases.LOCAL))
    for name, by_rank in trained.items():
        for rank, weights in by_rank.items():
            found[rank][f"train {name}"] = weights
    counts = engine.collectives()
    mine = min(rank for rank in found if found[rank])
    parts = cases.PROCESSES
    found[mine]["recalibrated"] = cases.recalibrated(parts, mine if parts > 1 else 0)
    engine.stop()
    counts["warnings"] = sum("outside" in str(one.message) for one in caught)
    for rank, results in found.items():
        if results:
            np.savez(f"{folder}/{rank}.npz", **results)
    if found.get(0):
        np.savez(f"{folder}/alone.npz", **alone)
        np.savez(f"{folder}/collectives.npz", **counts)


def add_operations(engine, every, found):
    """Adds what each replica gets of the cases to what is found, by its rank."""
    for name, by_rank in engine.operations(every).items():
        for rank, results in by_rank.items():
            found[rank] |= {f"{name}/{k}": v for k, v in results.items()}


def run_groups(engine, folder):
    """Writes `group <rank>.npz` for each of four replicas of this process."""
    more = engine.start_groups(folder)
    found = engine.grouped()
    add_operations(engine, cases.GROUP_CASES, found)
    engine.stop()
    for rank, results in found.items():
        np.savez(f"{folder}/group {rank}.npz", **results)
    return more


def run(environment):
    """All of one process's part."""
    os.environ |= environment
    faulthandler.dump_traceback_later(280, exit=True)  # of replicas that wait for ever
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(sys.argv[1], caught)


def run_example(environment):
    """What one process of the script does; what it prints, in `example.txt`."""
    os.environ |= environment
    faulthandler.dump_traceback_later(280, exit=True)
    with (
        open(f"{sys.argv[1]}/example.txt", "a") as file,
        contextlib.redirect_stdout(file),
    ):
        importlib.import_module(cases.EXAMPLE).main()


def run_together(function, environments):
    """Calls a function in a process for each; ends this one if one of them fails."""
    # They have this process's imports.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=(one,)) for one in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    worst = max(abs(process.exitcode) for process in processes)
    if worst:
        sys.exit(worst)


def as_torchrun(count):
    """What torchrun tells each of its processes, on a port of their own."""
    port = str(_digits.free_port())
    return [
        {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": str(cases.REPLICAS),
            "RANK": str(rank),
        }
        for rank in range(count)
    ]


class Started(Exception):
    """The script's processes have done all that there is to do."""


def start_processes(environments):
    """In the place of the scripts' own, which starts Python anew."""
    run_together(run_example, list(environments))
    raise Started


if __name__ == "__main__":
    if BACKEND != "tensorflow":
        # Keras asks whether data are TensorFlow's, and imports it, in each process.
        sys.modules["tensorflow"] = None
    _digits.start_processes = start_processes
    with contextlib.suppress(Started):
        if BACKEND == "torch":
            engine_of_backend()  # its imports, for all processes
            start_processes(as_torchrun(cases.REPLICAS))
        importlib.import_module(cases.EXAMPLE).main()
    if BACKEND == "torch":
        run_together(run, as_torchrun(cases.GROUP_REPLICAS))
    else:  # All replicas are in this process.
        run({})
