"""The admin address of a supervisor: the answers of all its processes together.

For: asking each process, and adding the label `process` to its metrics. Not for: the answers themselves
(cli/processes/admin.py). A process that does not answer is missing from the metrics, and `everput_up` is 0 for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from starlette.applications import Starlette

from broker.errors import Unavailable
from cli.processes.admin import Damaged, make_app
from cli.processes.children import Child

ASK_S: Final = 3.0


def all_app(children: Sequence[Child]) -> Starlette:
    """Create the application for the admin address of a supervisor.

    The supervisor is ready when all of its processes are ready.
    """

    async def check() -> None:
        answers = await _ask(children, "/health/ready")
        missing = [child.name for child in children if not answers[child.name]]
        if missing:
            raise Unavailable(
                f"these processes are not ready: {', '.join(missing)}. Try again later, or read the log of "
                "`everput serve`."
            )

    async def check_whole() -> None:
        """Raise Unavailable if a process is not ready. Otherwise, ask one process after another for its health. If a
        process does not answer, raise Unavailable. If it answers with an error, raise Damaged.
        """
        import httpx  # as in _ask()

        await check()
        async with httpx.AsyncClient(timeout=ASK_S, trust_env=False) as client:
            for child in children:
                try:
                    answer = await client.get(f"{child.admin_url}/health")
                except httpx.HTTPError as error:
                    raise Unavailable(f"the process {child.name} did not answer. Try again later.") from error
                if answer.status_code != httpx.codes.OK:
                    raise Damaged(answer.json()["detail"])

    async def metrics() -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(_Together(await _ask(children, "/metrics")))
        return registry

    async def states() -> dict[str, Any]:
        answers = await _ask(children, "/state")
        missing = [child.name for child in children if not answers[child.name]]
        if missing:
            raise Unavailable(
                f"these processes did not report their state: {', '.join(missing)}. Try again later, or read the log "
                "of `everput serve`."
            )
        return {name: next(iter(orjson.loads(text)["states"].values())) for name, text in answers.items()}

    return make_app(check, check_whole, metrics, states)


async def _ask(children: Iterable[Child], path: str) -> dict[str, str]:
    """Get `path` from the admin address of each process, and return the bodies of the answers by the name of the
    process. If a process does not answer 200 within ASK_S seconds, its body is an empty text.
    """
    import httpx  # import httpx late, because its import takes about a tenth of a second

    async with httpx.AsyncClient(timeout=ASK_S, trust_env=False) as client:

        async def one(child: Child) -> tuple[str, str]:
            if child.admin_url is None:
                return child.name, ""
            try:
                answer = await client.get(child.admin_url + path)
            except httpx.HTTPError:
                return child.name, ""
            return child.name, answer.text if answer.status_code == httpx.codes.OK else ""

        return dict(await asyncio.gather(*(one(child) for child in children)))


class _Together(Collector):
    """A Prometheus collector that combines the metrics of all processes, so that one request returns them all."""

    def __init__(self, texts: dict[str, str]) -> None:
        self._texts = texts

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterable[Metric]:
        up = GaugeMetricFamily("everput_up", "Whether the process answers", labels=["process"])
        together: dict[str, Metric] = {}
        for process, text in self._texts.items():
            up.add_metric([process], float(bool(text)))
            for family in text_string_to_metric_families(text):
                mine = together.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    mine.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
        return [up, *together.values()]
