"""Settings of the reference site. Everything that differs between machines comes from the environment:

DELIVERY_VAR   directory of the SQLite file, the payloads and the launcher's state (default: var/ beside manage.py)
REDIS_URL      redis://, rediss:// or unix://; default: the embedded Valkey that `manage.py up` started on DELIVERY_VAR
CELERY_BROKER_URL   default: the database after REDIS_URL's
DATABASE_URL   default: SQLite in DELIVERY_VAR
SECRET_KEY     default: one that the first start makes and keeps in DELIVERY_VAR (mode 600)
DEBUG, ALLOWED_HOSTS, CSRF_TRUSTED_ORIGINS   1 or empty; comma-separated; comma-separated
TLS_PROXY      1 where the only way in is a proxy that ends TLS and sets X-Forwarded-Proto; else empty
"""

import os
from pathlib import Path
from typing import Any

import dj_database_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from project.redis_urls import broker_url, default_redis_url
from project.secret import kept_secret, private_file


def _words(name: str, default: str = "") -> list[str]:
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


BASE_DIR = Path(__file__).resolve().parent.parent
DELIVERY_VAR = Path(os.environ.get("DELIVERY_VAR") or BASE_DIR / "var").expanduser().resolve()
DELIVERY_VAR.mkdir(mode=0o700, parents=True, exist_ok=True)  # SQLite makes files, never directories


SECRET_KEY = os.environ.get("SECRET_KEY") or kept_secret(DELIVERY_VAR / "secret_key")
DEBUG = os.environ.get("DEBUG", "") not in ("", "0")
ALLOWED_HOSTS = _words("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]")
CSRF_TRUSTED_ORIGINS = _words("CSRF_TRUSTED_ORIGINS")
if os.environ.get("TLS_PROXY", "") not in ("", "0"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "delivery",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "project.urls"
ASGI_APPLICATION = "project.asgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "project" / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
STATIC_ROOT = DELIVERY_VAR / "static"


def _database() -> dict[str, Any]:
    if url := os.environ.get("DATABASE_URL"):
        database: dict[str, Any] = dict(dj_database_url.parse(url, conn_max_age=60, conn_health_checks=True))
    else:
        database = {"ENGINE": "django.db.backends.sqlite3", "NAME": private_file(DELIVERY_VAR / "db.sqlite3")}
    if database["ENGINE"] == "django.db.backends.sqlite3":
        # Several processes write: readers must not block the writer (WAL), a transaction takes its write lock at the
        # start instead of failing half-way (IMMEDIATE), and waits its turn (timeout, in seconds).
        database["OPTIONS"] = {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            # Rows touch many pages: with 8 MiB for each connection they are not read again each time. And the same pages
            # again and again: moved from the log into the file at 16 MiB instead of 4, each costs a quarter of that.
            "init_command": "PRAGMA journal_mode=WAL;PRAGMA synchronous=NORMAL;PRAGMA cache_size=-8192;"
            "PRAGMA wal_autocheckpoint=4000",
        }
        database["CONN_MAX_AGE"] = 0
        # A file also for tests, since their threads share it; named by process, so that two runs don't meet in it.
        database["TEST"] = {"NAME": DELIVERY_VAR / f"test-{os.getpid()}.sqlite3"}
    return database


DATABASES = {"default": _database()}
STORAGES = {
    "default": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {"location": DELIVERY_VAR / "media"},
    },
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
    # Not below a directory that any web server serves: payloads are handed out by the policy only.
    "delivery": {
        "BACKEND": "django.core.files.storage.FileSystemStorage",
        "OPTIONS": {
            "location": DELIVERY_VAR / "payloads",
            "file_permissions_mode": 0o600,
            "directory_permissions_mode": 0o700,
        },
    },
}

REDIS_URL = os.environ.get("REDIS_URL") or default_redis_url(DELIVERY_VAR)
DELIVERY = {
    "PREFIX": "delivery",
    "REDIS_URL": REDIS_URL,
    "STORAGE": "delivery",
    "QUEUE": "delivery",
    "SEAL_QUEUE": "delivery-seal",
    "POLICY": "project.policy.DemoPolicy",
}
# Accounts that `manage.py up` makes, with random passwords, where they are missing.
DELIVERY_DEMO = {"users": ["alice", "bob", "carol"], "superuser": "admin", "groups": {"ops": ["alice", "bob"]}}

CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
        "CONFIG": {
            # redis-py 8 gives up on a socket that is silent for 5 s, and from_url() alone never tries again.
            "hosts": [
                {"address": REDIS_URL, "socket_timeout": 30, "retry": Retry(ExponentialBackoff(cap=1, base=0.05), 5)}
            ],
            "prefix": f"{DELIVERY['PREFIX']}.layer",
        },
    },
}

CELERY_BROKER_URL = os.environ.get("CELERY_BROKER_URL") or broker_url(REDIS_URL)
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # After the loss of a whole worker its tasks come back within two minutes; nobody who waits depends on it.
    "visibility_timeout": 120,
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    "socket_timeout": 30,
    "socket_keepalive": True,
    "health_check_interval": 25,
}
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_IGNORE_RESULT = True
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# SQLite's connection is a file handle, and opening it anew for each task costs as much as the task. A server's
# connection may break between two tasks, which only a new one notices.
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    CELERY_DB_REUSE_MAX = 1000
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_BEAT_SCHEDULE = {
    "delivery-sweep": {
        "task": "delivery.sweep",
        "schedule": 30.0,
        # A beat that nobody heard is not worth catching up with.
        "options": {"queue": DELIVERY["QUEUE"], "expires": 30.0},
    },
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "plain": {
            "()": "delivery.escaping.PrintableFormatter",  # names, client ids and addresses are strangers' words
            "fmt": "{asctime}.{msecs:03.0f} {levelname:<7} {name}: {message}",
            "style": "{",
            "datefmt": "%H:%M:%S",
        }
    },
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"handlers": ["console"], "level": os.environ.get("LOG_LEVEL", "INFO").upper()},
    "loggers": {
        # Django's own handlers would print everything a second time.
        "django": {"handlers": [], "propagate": True},
        "django.server": {"handlers": [], "propagate": True},
        # One line for each run of a task is noise: a 1 GiB upload has 128 of them.
        "celery.app.trace": {"level": "WARNING"},
        "celery.worker.strategy": {"level": "WARNING"},
        "celery.beat": {"level": "WARNING"},
    },
}
