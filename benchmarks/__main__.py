"""`python -m benchmarks NAME`, where NAME is one in the table of README.md: each prints JSON with ratios.

Each benchmark starts `everput serve` (embedded Kafka, fsync before each answer) on a temporary folder, and a sink and
publishers as separate processes on the same machine. `make bench` is `rates`. The sizes are options.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from benchmarks.auditing import auditing
from benchmarks.back import back
from benchmarks.cost import cost
from benchmarks.isolation import isolation
from benchmarks.lists import lists
from benchmarks.rates import bench
from benchmarks.replaying import replaying
from benchmarks.scale import scale
from benchmarks.scaling import scaling


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def _words(text: str) -> list[str]:
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_subparsers(dest="which")
    one = which.add_parser("rates", help="an installation, compared with what its parts can do (the default)")
    one.add_argument("--messages", type=int, default=20_000)
    one.add_argument("--rounds", type=int, default=3)
    one = which.add_parser("cost", help="processor time per message, compared with an empty PUT and another checkout")
    one.add_argument("--beside", default="", metavar="DIR", help="another checkout, with its .venv")
    one.add_argument("--messages", type=int, default=10_000)
    one.add_argument("--rounds", type=int, default=5)
    one.add_argument("--rates", type=_numbers, default=[1_000, 3_000], metavar="N,…", help="messages per second")
    one.add_argument("--idle-s", type=int, default=30, help="0 skips it")
    one.add_argument("--batch", type=int, default=100, help="messages in a request, for one shape more; 0 skips it")
    one = which.add_parser("isolation", help="a healthy listener alone and with bad ones")
    one.add_argument(
        "--kinds", type=_words, default=["dead", "hang", "slow"], metavar="KIND,…", help="or refuse, busy, drip"
    )
    one.add_argument("--bad", type=int, default=200, help="listeners of each kind")
    one.add_argument("--messages", type=int, default=3_000)
    one.add_argument("--rate", type=float, default=300)
    one.add_argument("--rounds", type=int, default=2)
    one = which.add_parser("replay", help="a healthy listener alone and during a big replay")
    one.add_argument("--replayed", type=int, default=300_000, help="messages of the replay")
    one.add_argument("--messages", type=int, default=3_000)
    one.add_argument("--rate", type=float, default=300)
    one.add_argument("--rounds", type=int, default=2)
    one = which.add_parser("return", help="a dead listener comes back")
    one.add_argument("--backlogs", type=_numbers, default=[4_000, 100_000], metavar="N,…")
    one.add_argument("--dead-s", type=float, default=20)
    one.add_argument("--others", type=int, default=600, help="other listeners that are down all the time")
    one.add_argument("--foreign", type=int, default=1_000_000, help="messages of another queue; 0 skips it")
    one = which.add_parser("scale", help="more workers, more listeners, a longer log")
    one.add_argument("--workers", type=_numbers, default=[1, 2, 4], metavar="N,…")
    one.add_argument("--backlog", type=int, default=100_000, help="messages that wait for the workers; 0 skips it")
    one.add_argument("--messages", type=int, default=20_000)
    one.add_argument("--listeners", type=int, default=10_000, help="0 skips it")
    one.add_argument("--queues", type=int, default=1_000)
    one.add_argument("--log", type=int, default=5_000_000, help="messages; 0 skips it")
    one = which.add_parser(
        "scaling",
        help="what a put, a delivery, a record batch and a second cost, and what that predicts of other loads",
    )
    one.add_argument("--messages", type=int, default=10_000)
    one.add_argument("--rounds", type=int, default=3)
    one.add_argument("--idle-s", type=int, default=30)
    one = which.add_parser("audit", help="reading the log: a story, verify, exports, compared with a bare Kafka read")
    one.add_argument("--events", type=int, default=2_000_000)
    one.add_argument("--listeners", type=int, default=0, help="listeners of the queue; everything is delivered first")
    one.add_argument("--folder", help="a folder that is kept, and used again as it is")
    one = which.add_parser("lists", help="the lists of the console, with a backlog for every listener")
    one.add_argument("--listeners", type=int, default=60)
    one.add_argument("--messages", type=int, default=100_000)
    one.add_argument("--rounds", type=int, default=20)
    given = sys.argv[1:]
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["rates", *given]
    options = vars(parser.parse_args(given))
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    benchmark = {"rates": bench, "isolation": isolation, "replay": replaying, "return": back, "scale": scale}
    found = (benchmark | {"audit": auditing, "cost": cost, "scaling": scaling, "lists": lists})[options.pop("which")](
        **options
    )
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
