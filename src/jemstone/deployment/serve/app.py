"""The routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from jemstone.data import grid
from jemstone.deployment.drift import DriftMonitor
from jemstone.deployment.predictor import Predictor
from jemstone.deployment.serve import inputs
from jemstone.deployment.serve.answers import (
    CounterfactualAnswer,
    HealthAnswer,
    PredictAnswer,
    SampleAnswer,
    encoded,
    png,
    prediction_answers,
)
from jemstone.deployment.serve.batching import Batcher
from jemstone.deployment.serve.bodies import Bodies
from jemstone.deployment.serve.chains import Chains
from jemstone.deployment.serve.facts import ModelFacts, facts_of, name_of
from jemstone.deployment.serve.front import (
    App,
    client_gone,
    guarded,
    http_error,
    internal_error,
    json_answer,
    refused_answer,
)
from jemstone.deployment.serve.metrics import Metrics
from jemstone.deployment.serve.refusal import Refused
from jemstone.deployment.serve.requests import CounterfactualRequest, PredictRequest, SampleRequest, parse
from jemstone.deployment.serve.schema import describe, documented
from jemstone.deployment.serve.settings import ServeSettings
from jemstone.version import __version__

WEB = Path(__file__).parent / "web"
DECODERS = 2
JSON, FORM = "application/json", "multipart/form-data"
T = TypeVar("T")


def make_app(
    predictor: Predictor,
    settings: ServeSettings | None = None,
    *,
    token: str | None = None,
    web: Path = WEB,
) -> App:
    """An ASGI application that serves `predictor`.

    With a `token` every route asks for it but /healthz and the page. `web` holds the page: index.html and what it
    loads from /static/.
    """
    settings = settings or ServeSettings()
    name = name_of(predictor)
    facts = facts_of(predictor, settings)
    decoders = ThreadPoolExecutor(DECODERS, "decode")
    model = ThreadPoolExecutor(1, "model")
    bodies = Bodies(settings)
    chains = Chains(predictor, settings)
    drift = DriftMonitor(
        predictor.calibration.reference, window=settings.drift_window, threshold=predictor.thresholds.density
    )
    metrics = Metrics(lambda: batcher.length, lambda: chains.pending, drift)
    batcher = Batcher(predictor.predict, settings, model, metrics.batch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.work())
        try:
            yield
        finally:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker
            for executor in (decoders, model, chains.executor):
                executor.shutdown(cancel_futures=True)

    app = FastAPI(
        title="jemstone",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={
            HTTPException: http_error,
            Refused: refused_answer,
            ClientDisconnect: client_gone,
            Exception: internal_error,
        },
    )

    async def decode(work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(decoders, work, *arguments)

    async def predict(request: Request) -> Response:
        """Label, calibrated probabilities, log density and an 'I don't know', for one input or many."""

        def tensor(body: bytes) -> Any:
            kind = request.headers.get("content-type", "")
            if kind.lower().startswith(FORM):
                return inputs.read(inputs.files_of_form(body, kind, settings), None, predictor, settings), None
            asked = parse(body, PredictRequest)
            x = inputs.read(asked.inputs, asked.scale, predictor, settings)
            return x, encoded(x) if asked.images and x.ndim == 4 else None

        async with bodies.read(request, JSON, FORM) as body:
            x, images = await decode(tensor, body)
        found = await _unless_gone(request, batcher.submit(x))
        metrics.predicted(found)
        return json_answer(PredictAnswer(name, prediction_answers(found), images))

    async def sample(request: Request) -> Response:
        """Fresh samples of the model's density; with Accept: image/png as one picture."""
        chains.require()
        async with bodies.read(request, JSON) as body:
            asked = await decode(parse, body, SampleRequest)
        answer, images = await _unless_gone(request, chains.run(lambda: chains.samples(asked)))
        if "image/png" in request.headers.get("accept", ""):
            picture = await decode(lambda: png(grid(images.clamp(-1, 1), columns=min(8, len(images)))))
            return Response(picture, media_type="image/png")
        return json_answer(answer)

    async def counterfactual(request: Request) -> Response:
        """What the model would change in an image to see other classes."""
        chains.require()

        def asked_and_image(body: bytes) -> Any:
            asked = parse(body, CounterfactualRequest)
            return asked, inputs.read([asked.input], asked.scale, predictor, settings)

        async with bodies.read(request, JSON) as body:
            asked, x = await decode(asked_and_image, body)
        return json_answer(await _unless_gone(request, chains.run(lambda: chains.counterfactuals(asked, x))))

    async def model_facts() -> Response:
        """What is served: classes, input shape, thresholds, limits, and where held-out log densities lie."""
        return json_answer(facts)

    async def health() -> Response:
        """The server answers."""
        return json_answer(HealthAnswer("ok"))

    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def page() -> Response:
        if not (web / "index.html").is_file():
            raise Refused("not_found", "This installation has no page.")
        return FileResponse(web / "index.html", headers={"Cache-Control": "no-cache"})

    def route(path: str, method: str, endpoint: Any, **details: Any) -> None:
        app.add_api_route(path, endpoint, methods=[method], **(details or {"include_in_schema": False}))

    route("/v1/predict", "POST", predict, **documented(PredictAnswer, PredictRequest, form=True))
    route("/v1/sample", "POST", sample, **documented(SampleAnswer, SampleRequest, png=True, chains=True))
    asked_for_change = documented(CounterfactualAnswer, CounterfactualRequest, chains=True)
    route("/v1/counterfactual", "POST", counterfactual, **asked_for_change)
    route("/v1/model", "GET", model_facts, **documented(ModelFacts))
    route("/healthz", "GET", health, **documented(HealthAnswer))
    route("/metrics", "GET", metrics_text)
    route("/", "GET", page)
    if web.is_dir():
        app.mount("/static", StaticFiles(directory=web), name="static")
    describe(app, facts, protected=token is not None)
    return guarded(app, token=token, is_open=_is_open, metrics=metrics)


def _is_open(path: str) -> bool:
    return path in ("/", "/healthz") or path.startswith("/static/")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """`work`, cancelled when the client leaves before it is done."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for part in (task, gone):
            part.cancel()
