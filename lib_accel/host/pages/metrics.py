"""What monitoring reads: metrics in Prometheus' text format, and whether this WebUI is ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..service import service

MOST_REASONS = 20
"""So many reasons have a label of their own: each is a time series for as long as it is kept."""


def exposition() -> tuple[bytes, str]:
    """Return the metrics and their media type. Raises ImportError without prometheus_client."""
    from prometheus_client import (  # type: ignore[import-not-found]
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        generate_latest,
    )

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def health() -> dict[str, str | None]:
    """Return `state`: ready, compiling or unaccelerated, and the `reason`."""
    s = service.status()
    state = s["state"] if s["state"] in ("ready", "compiling") else "unaccelerated"
    stage = (s["progress"] or {}).get("stage") if state == "compiling" else None
    off = "it is switched off" if s["state"] == "off" else None
    return {"state": state, "reason": s["reason"] or stage or off}


class _Collector:
    """Reads everything anew, each time that it is asked."""

    def collect(self) -> Iterator[Any]:
        """Yield every family of metrics."""
        from prometheus_client.core import (  # type: ignore[import-not-found]
            CounterMetricFamily,
            GaugeMetricFamily,
        )

        s, more = service.status(), service.measured()
        counts = s["counters"]
        ready = GaugeMetricFamily("accel_ready", "1 while compiled code serves the loaded model.")
        ready.add_metric([], float(s["state"] == "ready"))
        yield ready
        images = CounterMetricFamily(
            "accel_images",
            "Images made, by the backend that computed them; those not compiled have a reason.",
            labels=["backend", "reason"],
        )
        for (backend, reason), count in _few(service.images).items():
            images.add_metric([backend, reason], count)
        yield images
        for name, text, value in (
            ("accel_calls", "UNet calls computed by compiled code.", counts["accelerated_calls"]),
            ("accel_eager_calls", "UNet calls by our code, not compiled.", counts["eager_calls"]),
            ("accel_host_calls", "UNet calls computed by the WebUI.", counts["host_calls"]),
            ("accel_compiles", "Units compiled.", counts["compiles"]),
            ("accel_compile_seconds", "Time that compiling took.", more["compile_seconds"]),
            ("accel_compile_failures", "Compilations that failed.", more["compile_failures"]),
            ("accel_store_hits", "Artifacts fetched from the shared store.", more["hits"]),
            ("accel_store_misses", "Artifacts that it did not have.", more["misses"]),
            ("accel_store_failures", "Times that it could not be used.", more["failures"]),
            ("accel_fetch_seconds", "Time that fetching took.", more["seconds"]),
            ("accel_witnessed", "Steps computed by the WebUI's own code too.", s["witnessed"]),
        ):
            yield CounterMetricFamily(name, text, value=value)
        for name, text, value in (
            ("accel_witness_fault", "1 where the two ways have differed.", bool(s["difference"])),
            ("accel_witness_worst_error", "Largest relative difference.", s["worst_error"]),
            ("accel_graph_bytes", "Video memory of CUDA graphs.", more["graph_bytes"]),
        ):
            yield GaugeMetricFamily(name, text, value=float(value))
        steps = GaugeMetricFamily(
            "accel_step_seconds",
            "The usual time of a step, on: by compiled code, off: by the WebUI's own.",
            labels=["backend", "size", "acceleration"],
        )
        for each in s["speeds"]:
            for label, seconds in (("on", each["ours_s"]), ("off", each["theirs_s"])):
                steps.add_metric([each["backend"], str(each["size"]), label], seconds)
        yield steps


def _few(images: Counter[tuple[str, str]]) -> Counter[tuple[str, str]]:
    """Return the counts with the rarer reasons as one: "other"."""
    kept = {key for key, _ in images.most_common(MOST_REASONS)}
    few: Counter[tuple[str, str]] = Counter()
    for (backend, reason), count in images.items():
        few[backend, reason if (backend, reason) in kept else "other"] += count
    return few
