"""``gunicorn wsgi:app`` with the settings and the options of ``authsvc serve``."""

import os

from authsvc.cli.service import server_options
from authsvc.observability.logs import configure
from authsvc.server import ServerTimings
from authsvc.server.process import gunicorn_options
from authsvc.settings import Settings

settings = Settings.from_env(os.environ)
configure(settings.log.level, settings.log.format)
globals().update(gunicorn_options(server_options(settings, ServerTimings())))
