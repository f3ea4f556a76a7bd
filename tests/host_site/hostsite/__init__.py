"""A site that had a Celery app, a queue and tasks of its own before `delivery` came."""

from hostsite.celery import app

__all__ = ["app"]
