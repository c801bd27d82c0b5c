"""Runs every case on this backend's engine, and saves what each replica got."""

import faulthandler
import multiprocessing
import os
import socket
import sys
import warnings

import keras
import numpy as np
import replica_cases as cases

engine = __import__(f"replicas_{keras.backend.backend()}")


def main(folder, caught):
    """Writes `<rank>.npz` for each replica of this process, and `alone.npz`."""
    more = run_groups(folder)
    if more:  # a process that was only for these
        return
    trainings = (*cases.TRAININGS, cases.LOCAL)
    alone = {one.name: engine.train(one, alone=True)[0] for one in trainings}
    engine.start()
    found = {rank: {} for rank in range(cases.REPLICAS)}
    for case in cases.EVERY_CASE:
        for rank, results in engine.operation(case).items():
            found[rank] |= {f"{case.name}/{k}": v for k, v in results.items()}
    for training in trainings:
        for rank, weights in engine.train(training).items():
            found[rank][f"train {training.name}"] = weights
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


def run_groups(folder):
    """Writes `group <rank>.npz` for each of four replicas of this process."""
    more = engine.start_groups(folder)
    found = engine.grouped()
    for case in cases.GROUP_CASES:
        for rank, results in engine.operation(case).items():
            found[rank] |= {f"{case.name}/{k}": v for k, v in results.items()}
    engine.stop()
    for rank, results in found.items():
        np.savez(f"{folder}/group {rank}.npz", **results)
    return more


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def run(rank):
    """All of one process's part; `rank` is its number among those that started."""
    os.environ["RANK"] = str(rank)
    faulthandler.dump_traceback_later(280, exit=True)  # of replicas that wait for ever
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(sys.argv[1], caught)


def run_together(count):
    """Runs `count` processes that know of each other, and fails if one of them does."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "WORLD_SIZE": str(cases.REPLICAS),
    }
    # They have this process's imports, which would take each of them seconds.
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=run, args=(rank,)) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in processes))


if __name__ == "__main__":
    if cases.STARTED > 1:
        run_together(cases.STARTED)
    run(0)
