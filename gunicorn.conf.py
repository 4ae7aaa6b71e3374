"""``gunicorn wsgi:app`` with the settings and the options of ``authsvc serve``."""

import os

from authsvc.observability.logs import configure
from authsvc.server import ServerOptions
from authsvc.server.process import gunicorn_options
from authsvc.settings import Settings

settings = Settings.from_env(os.environ)
configure(settings.log.level, settings.log.format)
globals().update(
    gunicorn_options(
        ServerOptions(
            host=settings.http.host,
            port=settings.http.port,
            metrics_port=settings.http.metrics_port,
            workers=settings.http.workers,
            log_level=settings.log.level,
            figures=settings.http.figures_dir,
        )
    )
)
