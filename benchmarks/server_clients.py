"""Many clients at once, round after round, with bad requests and disconnects among them: is anything lost, does memory
grow?

python -m benchmarks.server_clients --rounds 20 --clients 50

The server is `kad serve tiny` in a process of its own. Every client asks one good question. Its text must be that of
`kad.generate` with the same seed. Before it, some clients send a bad request, some hang up in the middle of a stream,
some give up while they wait. Which client does what is drawn anew in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
BAD: list[dict[str, Any]] = [{"rule": "duel"}, {"temperature": -1}, {"messages": []}, {"what": 1}, {"n": 0}]


def question(number: int) -> str:
    """What a client asks: some of them the same."""
    return f"Ann has {number % 7} pens."


async def ask(http: httpx.AsyncClient, model: str, number: int, new_tokens: int, draw: random.Random) -> str:
    """One client: what it does wrong, and then the text of its good request."""
    asked: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": question(number)}]}
    asked |= {"seed": number, "temperature": 1.0, "max_tokens": new_tokens}
    wrong, streams = draw.choice(["nothing", "nothing", "bad", "hangs up", "gives up"]), draw.random() < 0.5
    if wrong == "bad":
        got = await http.post(CHAT, json=asked | draw.choice(BAD))
        assert got.status_code == 400, got.text
    if wrong == "hangs up":
        async with http.stream("POST", CHAT, json=asked | {"stream": True, "max_tokens": 300}) as left:
            async for _ in left.aiter_bytes():
                break
    if wrong == "gives up":
        with suppress(httpx.ReadTimeout):
            await http.post(CHAT, json=asked | {"max_tokens": 300, "n": 20}, timeout=httpx.Timeout(300, read=0.2))
    if not streams:
        got = await http.post(CHAT, json=asked)
        return str(got.json()["choices"][0]["message"]["content"])
    async with http.stream("POST", CHAT, json=asked | {"stream": True}) as stream:
        lines = [line[6:] async for line in stream.aiter_lines() if line.startswith("data: {")]
    return "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines)


async def everybody(address: str, model: str, clients: int, new_tokens: int, seed: int) -> list[str]:
    """The texts of all clients, which ask at the same time; then nobody is in the line any more."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=300, trust_env=False, limits=limits) as http:
        draws = [random.Random(1000 * seed + number) for number in range(clients)]
        texts = await asyncio.gather(*(ask(http, model, number, new_tokens, draw) for number, draw in enumerate(draws)))
        async with asyncio.timeout(60):
            while (await http.get(f"/v1/models/{model}")).json()["kad"]["waiting"]:
                await asyncio.sleep(0.05)
    return texts


def resident(process: int) -> float:
    """MiB that a process holds."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    """Some rounds against a server, and its memory after each."""
    import kad
    from benchmarks.harness import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=8)
    options = parser.parse_args()
    pair = kad.load("tiny", dtype="float32")
    truth = []
    for number in range(options.clients):
        how = kad.Sampling(seed=number, temperature=1.0, max_new_tokens=options.new_tokens)
        truth.append(kad.generate(pair, question(number), sampling=how).text)
    serve = ["serve", "tiny", "--engine", "transformers", "--dtype", "float32", "--port", "0", "--max-requests", "500"]
    with subprocess.Popen([sys.executable, "-m", "kad", *serve], stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            address = next(found[0] for line in server.stderr if (found := re.search(r"http://[^/\s]+", line)))
            rounds = []
            for number in range(options.rounds):
                began = time.perf_counter()
                texts = asyncio.run(everybody(address, "tiny", options.clients, options.new_tokens, number))
                right = sum(text == wanted for text, wanted in zip(texts, truth, strict=True))
                rounds.append({"right": right, "mib": round(resident(server.pid), 1)})
                print(f"round {number + 1}: {right} of {options.clients} right, {rounds[-1]['mib']:.0f} MiB, "
                      f"{time.perf_counter() - began:.1f} s", flush=True)  # fmt: skip
        finally:
            server.terminate()
    save("server-clients", {"clients": options.clients, "new_tokens": options.new_tokens, "rounds": rounds})


if __name__ == "__main__":
    main()
