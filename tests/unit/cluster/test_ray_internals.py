"""Ray's private names are where `workers.ray_internals` read them, and stand nowhere else."""

from __future__ import annotations

import inspect
import logging
import logging.handlers
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray import _raylet
from ray._common.usage import usage_constants
from ray._private import node, ray_constants, ray_logging, services, worker
from ray._private.authentication import authentication_token_setup
from ray.autoscaler._private import constants as autoscaler
from ray.serve._private import constants, http_util, replica
from ray.serve._private.replica_result import ReplicaResult
from ray.serve.config import HTTPOptions
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter

from cluster.app import Ingress
from cluster.ingress.http.proxy import ProxyGuard
from cluster.supervisor.supervisor import SERVE_ENVIRONMENT
from workers import ray_internals

ROOT = Path(__file__).parents[3]
READ_AGAIN = f"read workers/ray_internals.py again with Ray {ray.__version__}, then set RAY_VERSION"
PRIVATE = re.compile(
    r"_by_reference|_tensor_transport|_fetch_replica_results_async|replica_queue_len_cache|should_backoff|_temp_dir"
    r"|RAY_SERVE_|RAY_AUTH_|RAY_USAGE_|plasma_store|\bray\.(serve\.)?_private"
)


def test_the_names_were_read_from_the_installed_version() -> None:
    assert ray.__version__ == ray_internals.RAY_VERSION, READ_AGAIN


def test_private_names_stand_in_one_file() -> None:
    sources = [path for package in ("cache_service", "workers", "cluster") for path in (ROOT / package).rglob("*.py")]
    used = {path.relative_to(ROOT).as_posix() for path in sources if PRIVATE.search(path.read_text())}

    assert used == {"workers/ray_internals.py"}


def test_handles_take_answers_by_value() -> None:
    assert set(ray_internals.BY_VALUE) <= set(inspect.signature(DeploymentHandle.options).parameters)


def test_calls_to_all_replicas_are_awaited_one_by_one() -> None:
    assert inspect.iscoroutinefunction(DeploymentBroadcastResponse._fetch_replica_results_async)
    assert {"get_async", "cancel", "add_done_callback"} <= ReplicaResult.__abstractmethods__


def test_the_router_knows_the_replicas_load() -> None:
    router, replica_id = RequestRouter.__new__(PlainRouter), "r"
    router._replica_queue_len_cache = {replica_id: 3}

    assert ray_internals.reported_load(router, replica_id) == 3
    assert ray_internals.reported_load(router, "unknown") == 0
    assert "queue_len_response_deadline_s" in vars(RequestRouter)


class PlainRouter(RequestRouter):  # type: ignore[misc]
    async def choose_replicas(self, *_: object) -> list[list[object]]:
        return []


async def test_a_request_that_finds_all_replicas_full_backs_off() -> None:
    pending = PendingRequest(args=[], kwargs={}, metadata=SimpleNamespace())
    assert pending.routing_context.should_backoff is False

    ray_internals.back_off_while_full(pending)

    assert pending.routing_context.should_backoff is True


def test_a_tensor_can_stay_in_its_holders_memory() -> None:
    assert set(ray_internals.READ_IN_PLACE) <= set(inspect.signature(ray.put).parameters)


def test_serve_asks_the_ingress_for_its_application() -> None:
    assert ray_internals.ASGI_APP_METHOD == replica.SERVE_BUILD_ASGI_APP_METHOD
    assert hasattr(Ingress, ray_internals.ASGI_APP_METHOD)


@pytest.mark.parametrize("name", ray_internals.SERVE_SETTINGS)
def test_serve_reads_its_settings(name: str) -> None:
    assert hasattr(constants, name)


def test_serve_wraps_its_http_servers_in_our_middlewares(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hasattr(constants, ray_internals.PROXY_CALLBACK)
    path = SERVE_ENVIRONMENT[ray_internals.PROXY_CALLBACK]
    monkeypatch.setattr(http_util, ray_internals.PROXY_CALLBACK, path)

    [middleware] = http_util.configure_http_middlewares(HTTPOptions()).middlewares

    assert middleware.cls is ProxyGuard
    assert "http_options.middlewares" in inspect.getsource(http_util.start_asgi_http_server)


def test_the_headers_that_steer_serve_are_known() -> None:
    steering = {
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_SESSION_ID,
        constants.SERVE_MULTIPLEXED_MODEL_ID.replace("_", "-"),
    }
    headers = {value for name, value in vars(constants).items() if name.startswith("SERVE_HTTP_") and "HEADER" in name}

    assert steering == ray_internals.STEERING
    assert headers <= steering | {ray_internals.REQUEST_ID}
    assert constants.SERVE_INGRESS_ROUTER_HEADER_PREFIX == ray_internals.STEERING_PREFIX
    assert constants.SERVE_HTTP_REQUEST_ID_HEADER == ray_internals.REQUEST_ID


def test_ray_reads_how_it_is_locked() -> None:
    known = {usage_constants.USAGE_STATS_ENABLED_ENV_VAR, authentication_token_setup.AUTH_MODE_ENV_VAR}
    assert set(ray_internals.LOCKED_SETTINGS) == known


def test_ray_keeps_its_files_in_the_given_directory() -> None:
    [option] = ray_internals.init_options(Path("/run"))
    assert option in inspect.getsource(worker.init)
    assert Path(ray_internals.LONGEST_SOCKET_PATH).name in inspect.getsource(node)


def test_vital_processes_are_executables_of_ray() -> None:
    executables = {Path(path).stem for path in (services.GCS_SERVER_EXECUTABLE, services.RAYLET_EXECUTABLE)}
    assert executables == ray_internals.VITAL_PROCESSES


@pytest.mark.parametrize("name", [*ray_internals.LOG_SETTINGS, *ray_internals.UNSCALED])
def test_ray_reads_how_much_it_logs(name: str) -> None:
    """Names of Ray's native code are its configuration's, with `RAY_` before them."""
    python_sources = (inspect.getsource(module) for module in (ray_constants, ray_logging, node, worker, autoscaler))
    native = Path(_raylet.__file__).read_bytes()

    assert any(name in source for source in python_sources) or name.removeprefix("RAY_").encode() in native


def test_serves_warnings_at_a_full_queue_are_recognised() -> None:
    dropped = BackPressureError(num_queued_requests=1, max_queued_requests=1).message
    sources = [inspect.getsource(replica), dropped]
    assert all(any(start in source for source in sources) for start in ray_internals.REFUSAL_WARNINGS)

    logger = logging.getLogger(ray_internals.SERVE_LOGGER)
    records = [
        logger.makeRecord(logger.name, logging.WARNING, "", 0, text, (), None) for text in (dropped, "a replica died")
    ]
    assert [ray_internals.is_no_refusal(record) for record in records] == [False, True]


def test_serves_lines_get_our_form(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger(ray_internals.SERVE_LOGGER)
    to_stderr, to_file = logging.StreamHandler(), logging.handlers.MemoryHandler(1)
    monkeypatch.setattr(logger, "handlers", [to_stderr, to_file])
    monkeypatch.setattr(logger, "filters", [])

    ray_internals.adapt_serve_logs(formatter := logging.Formatter())

    assert (to_stderr.formatter, to_file.formatter) == (formatter, None)
    assert logger.filters == [ray_internals.is_no_refusal]
