"""Kill a server's processes at random moments and start it again: what clients see, what is left, whether it serves.

    python tests/vllm/kill.py --rounds 10 --seed 0

In each round `kad serve tiny` starts on one and the same port. It must answer as the first one did. Then random
requests keep it busy (see fuzz.py), until its API server, its engine or its worker, in turns, gets SIGKILL; in one
round of five that happens while it starts. A line of JSON says what became of the round. Exit code 1 where a process
stays or a restart does not serve.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fuzz
import httpx
import psutil
from forks import engine_environment
from server import Server, free_port

OPTIONS = ("--enforce-eager", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "64")
CLIENTS = 16
VICTIMS, NAMES = ("API server", "engine", "worker"), {"engine": "EngineCore", "worker": "Worker"}
LONGEST_LOAD, LONGEST_END = 20.0, 60.0
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": fuzz.QUESTIONS[0]}], "temperature": 0}


def answer(server: Server) -> str:
    """The greedy text of one question."""
    reply = httpx.post(f"{server.address}/v1/chat/completions", json=QUESTION, timeout=120).raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def ask_until_it_dies(server: Server, seed: int) -> Counter[str]:
    """What one client sees, to the first request that fails."""
    chance, seen = random.Random(seed), Counter[str]()
    with httpx.Client(base_url=server.address, timeout=120) as client:
        while True:
            body, bad = fuzz.request(chance, reference=True)
            try:
                status, _ = fuzz.ask(client, {"model": "tiny", **body}, hang_up=False)
            except (httpx.HTTPError, OSError) as error:
                return seen + Counter([type(error).__name__])
            seen[f"{status}{' (bad)' if bad else ''}"] += 1
            if status >= 500:
                return seen


def kill_once(server: Server, victim: str, after: float) -> dict[str, Any]:
    """Kill a process, or the API server while there is no such, and wait until the others have ended, too."""
    time.sleep(after)
    everything, wanted = server.family(), server.named(NAMES[victim]) if victim in NAMES else None
    memory = server.memory()
    killed = everything[0] if wanted is None else wanted
    victim = "API server" if wanted is None else victim
    killed.kill()
    start = time.monotonic()
    server.process.wait(LONGEST_END)
    _, left = psutil.wait_procs(everything, timeout=LONGEST_END)
    found = {"killed": victim, "after": round(after, 1), "processes": len(everything), "MiB": memory >> 20}
    for process in left:
        process.kill()
    return found | {
        "ended within": round(time.monotonic() - start, 1),
        "left": len(left),
        "exit": server.process.poll(),
    }


def run(rounds: int, seed: int, folder: Path) -> bool:
    """The rounds; whether all went well."""
    chance, port, first = random.Random(seed), free_port(), None
    environment = {name: value for name, value in engine_environment().items() if "MULTIPROCESSING" not in name}
    start_seconds, well = 0.0, True
    for number in range(rounds + 1):
        server = Server("tiny", folder / f"{number}.txt", environment, *OPTIONS, port=port)
        begun = time.monotonic()
        server.start()
        clients: list[Future[Counter[str]]] = []
        with ThreadPoolExecutor(CLIENTS) as crowd:
            moment, victim = chance.random(), VICTIMS[number % 3]
            starting = number % 5 == 4 and number < rounds
            if not starting:
                server.wait_until_it_serves()
                start_seconds = time.monotonic() - begun
                text = answer(server)
                first = text if first is None else first
                well &= text == first
                if number == rounds:
                    print(json.dumps({"serves again": text == first}), flush=True)
                    server.__exit__(None, None, None)
                    break
                clients = [crowd.submit(ask_until_it_dies, server, chance.getrandbits(32)) for _ in range(CLIENTS)]
            row = kill_once(server, victim, moment * (start_seconds if starting else LONGEST_LOAD))
            seen = sum((client.result() for client in clients), Counter[str]())
        well &= row["left"] == 0
        print(json.dumps({"while": "starting" if starting else "busy", **row, "seen": dict(seen)}), flush=True)
    return well


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        sys.exit(not run(chosen.rounds, chosen.seed, Path(folder)))


if __name__ == "__main__":
    main()
