"""URLs of the app: `path("delivery/", include("delivery.urls"))`."""

from __future__ import annotations

from django.urls import path

from delivery import views

urlpatterns = [path("payload/<str:link>", views.payload, name="delivery-payload")]
