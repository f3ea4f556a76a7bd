"""Wires the app into Django: checks, and what must run in every process."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class DeliveryConfig(AppConfig):
    name = "delivery"
    verbose_name = _("Delivery")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from delivery import checks, escaping, worker
        from delivery.transfers import cleanup

        escaping.guard_loggers(self.name)
        checks.register_all()
        worker.connect()
        cleanup.connect_deletions()
