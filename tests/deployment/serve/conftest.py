"""A server of the small run, in this process."""

import pytest
from starlette.testclient import TestClient

from jemstone.deployment.serve.app import make_app
from jemstone.deployment.serve.settings import ServeSettings


@pytest.fixture
def serving(predictor):
    """A function that gives a client of an app with these settings; every one is closed at the end."""
    clients = []

    def make(model=predictor, *, settings=None, **options) -> TestClient:
        app = make_app(model, settings or ServeSettings(), **options)
        client = TestClient(app, raise_server_exceptions=False).__enter__()
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serving):
    return serving()
