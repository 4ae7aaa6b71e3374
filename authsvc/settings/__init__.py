"""What the operator decides: read once from the environment, checked in full, frozen."""

from __future__ import annotations

from authsvc.settings.kinds import LimitSetting, Secret
from authsvc.settings.locations import Address
from authsvc.settings.model import VARIABLES, Environment, Settings, all_names
from authsvc.settings.problems import Problem, SettingsError
from authsvc.settings.sections import (
    CacheSettings,
    DatabaseSettings,
    EmailVerification,
    HttpSettings,
    LimitSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    MailSettings,
    MailTransport,
    PasswordSettings,
    RedisSettings,
    RegistrationMode,
    RegistrationSettings,
    SessionSettings,
    SmtpTls,
    TokenSettings,
    TracingMode,
    TracingSettings,
)

__all__ = [
    "VARIABLES",
    "Address",
    "CacheSettings",
    "DatabaseSettings",
    "EmailVerification",
    "Environment",
    "HttpSettings",
    "LimitSetting",
    "LimitSettings",
    "LogFormat",
    "LogLevel",
    "LogSettings",
    "MailSettings",
    "MailTransport",
    "PasswordSettings",
    "Problem",
    "RedisSettings",
    "RegistrationMode",
    "RegistrationSettings",
    "Secret",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "SmtpTls",
    "TokenSettings",
    "TracingMode",
    "TracingSettings",
    "all_names",
]
