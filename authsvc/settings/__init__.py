"""Settings: read once from the environment, checked completely, frozen."""

from __future__ import annotations

from authsvc.settings.accounts import (
    EmailVerification,
    LimitSettings,
    MailSettings,
    MailTransport,
    PasswordSettings,
    RegistrationMode,
    RegistrationSettings,
    SessionSettings,
    SmtpTls,
    TokenSettings,
)
from authsvc.settings.factors import PasskeySettings, SecondFactorSettings
from authsvc.settings.infrastructure import (
    CacheSettings,
    DatabaseSettings,
    HttpSettings,
    LogFormat,
    LogLevel,
    LogSettings,
    RedisSettings,
    TracingMode,
    TracingSettings,
)
from authsvc.settings.kinds import LimitSetting, Secret, revealed
from authsvc.settings.locations import Address
from authsvc.settings.model import VARIABLES, Environment, Settings, all_names
from authsvc.settings.reader import Problem, SettingsError, available_cores

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
    "PasskeySettings",
    "PasswordSettings",
    "Problem",
    "RedisSettings",
    "RegistrationMode",
    "RegistrationSettings",
    "SecondFactorSettings",
    "Secret",
    "SessionSettings",
    "Settings",
    "SettingsError",
    "SmtpTls",
    "TokenSettings",
    "TracingMode",
    "TracingSettings",
    "all_names",
    "available_cores",
    "revealed",
]
