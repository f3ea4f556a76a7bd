"""Static files as sites may have them: with hashed names, and with Django's rewriting of module imports."""

from django.contrib.staticfiles.storage import ManifestStaticFilesStorage


class PlainManifest(ManifestStaticFilesStorage):
    """Names are hashed; what modules import keeps its name."""


class AggregatingStorage(ManifestStaticFilesStorage):
    support_js_module_import_aggregation = True
