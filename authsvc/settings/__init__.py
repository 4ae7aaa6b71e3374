"""What the operator decides: read once from the environment, checked in full, frozen."""

from __future__ import annotations

from authsvc.settings.groups import (
    CacheSettings,
    DatabaseSettings,
    Environment,
    HttpSettings,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    PasswordSettings,
    RedisSettings,
    SessionSettings,
    TokenSettings,
    TracingMode,
    TracingSettings,
)
from authsvc.settings.kinds import LimitSetting, Secret
from authsvc.settings.locations import Address
from authsvc.settings.model import Settings
from authsvc.settings.problems import Problem, SettingsError

__all__ = [
    "Address",
    "CacheSettings",
    "DatabaseSettings",
    "Environment",
    "HttpSettings",
    "LimitSetting",
    "LimitSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "PasswordSettings",
    "Problem",
    "RedisSettings",
    "Secret",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "TokenSettings",
    "TracingMode",
    "TracingSettings",
]
