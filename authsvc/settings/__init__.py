"""What the operator decides: read once from the environment, checked in full, frozen."""

from __future__ import annotations

from authsvc.settings.kinds import LimitSetting, Secret
from authsvc.settings.locations import Address
from authsvc.settings.model import VARIABLES, Environment, Settings, all_names
from authsvc.settings.problems import Problem, SettingsError
from authsvc.settings.sections import (
    CacheSettings,
    DatabaseSettings,
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

__all__ = [
    "VARIABLES",
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
    "all_names",
]
