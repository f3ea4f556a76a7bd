"""The reference site: a plain Django project that uses `delivery` as any other site would."""

from project.celery import app as celery_app

__all__ = ["celery_app"]
