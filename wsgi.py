"""For WSGI servers: ``gunicorn wsgi:app`` serves what ``authsvc serve`` serves."""

import os

from authsvc.app import create_app
from authsvc.settings import Settings
from authsvc.wiring import build

services = build(Settings.from_env(os.environ))
app = create_app(services)
