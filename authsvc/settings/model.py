"""All settings in one frozen value, and the page that describes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar

from authsvc.settings import accounts, checks, factors, infrastructure, kinds, risks
from authsvc.settings.declaration import section, sections_of, setting, variables_of
from authsvc.settings.reader import Reader, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from authsvc.settings.declaration import Variable
    from authsvc.settings.reader import Problem


class Environment(StrEnum):
    """Production requires what development replaces by embedded parts."""

    PRODUCTION = "production"
    DEVELOPMENT = "development"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The result of :meth:`from_env`; ``warnings`` are logged at the start."""

    title: ClassVar = "Environment"

    environment: Environment = setting(
        "AUTHSVC_ENV",
        kinds.choice(Environment),
        "Development embeds what is missing and is never the default",
        default="production",
    )
    http: infrastructure.HttpSettings = section(infrastructure.HttpSettings)
    log: infrastructure.LogSettings = section(infrastructure.LogSettings)
    tracing: infrastructure.TracingSettings = section(infrastructure.TracingSettings)
    database: infrastructure.DatabaseSettings = section(infrastructure.DatabaseSettings)
    redis: infrastructure.RedisSettings = section(infrastructure.RedisSettings)
    tokens: accounts.TokenSettings = section(accounts.TokenSettings)
    passwords: accounts.PasswordSettings = section(accounts.PasswordSettings)
    sessions: accounts.SessionSettings = section(accounts.SessionSettings)
    limits: accounts.LimitSettings = section(accounts.LimitSettings)
    mail: accounts.MailSettings = section(accounts.MailSettings)
    registration: accounts.RegistrationSettings = section(accounts.RegistrationSettings)
    machines: accounts.MachineSettings = section(accounts.MachineSettings)
    second_factors: factors.SecondFactorSettings = section(factors.SecondFactorSettings)
    passkeys: factors.PasskeySettings = section(factors.PasskeySettings)
    cache: infrastructure.CacheSettings = section(infrastructure.CacheSettings)
    warnings: tuple[str, ...] = ()

    @property
    def is_development(self) -> bool:
        """True if missing parts may be embedded."""
        return self.environment is Environment.DEVELOPMENT

    @classmethod
    def from_env(cls, env: Mapping[str, str], *, cpu_count: int | None = None) -> Settings:
        """
        Read, check and freeze *env*; *cpu_count* (default: this machine's) sets the workers.

        Touches the file system for ``<NAME>_FILE`` and the key folder, nothing else.

        Raises:
            SettingsError: something is missing, wrong, weak or contradictory; names all of it.
        """
        reader = Reader(env, cpu_count=cpu_count)
        draft = reader.section(cls)
        problems = (*reader.problems, *_problems(draft, reader), *checks.unknown_names(env, all_names()))
        if problems:
            raise SettingsError(problems)
        return replace(draft, warnings=tuple(_warnings(draft, reader)))


def _problems(draft: Settings, reader: Reader) -> Iterator[Problem]:
    yield from checks.http_problems(draft.http, reader)
    yield from checks.redis_problems(draft.redis, draft.http, reader)
    yield from checks.lifetime_problems(draft.tokens, draft.sessions, reader)
    yield from checks.key_folder_problems(draft.tokens, reader)
    yield from checks.server_option_problems(draft.database, reader)
    yield from checks.mail_problems(draft.mail, reader)
    yield from checks.link_problems(draft.mail, reader)
    yield from checks.registration_problems(draft.registration, draft.mail, reader)
    yield from factors.second_factor_problems(draft.second_factors, reader)
    yield from factors.passkey_problems(draft.passkeys, reader)
    if not draft.is_development:
        yield from checks.production_problems(draft.database, draft.passwords, reader)
        yield from risks.weak_secrets(reader)
        yield from risks.sample_passwords(reader)


def _warnings(draft: Settings, reader: Reader) -> Iterator[str]:
    yield from risks.http_warnings(draft.http)
    yield from risks.issuer_warnings(draft.tokens)
    yield from risks.limit_warnings(draft.limits)
    yield from factors.passkey_warnings(draft.passkeys, draft.second_factors)
    yield from checks.ignored_names(reader.env, all_names())
    if draft.is_development:
        yield from risks.redis_warnings(draft.redis, reader)
        yield from map(str, risks.weak_secrets(reader))


_PARTS: tuple[type[Any], ...] = (Settings, *(part for _, part in sections_of(Settings)))
#: Title and variables of each section, in the order of ``docs/settings.md``.
SECTIONS = tuple((part.title, tuple(variable for _, variable in variables_of(part))) for part in _PARTS)
VARIABLES = {variable.name: variable for _, variables in SECTIONS for variable in variables}


def all_names() -> frozenset[str]:
    """Every name that the environment may carry, the ``_FILE`` forms of secrets included."""
    return frozenset(name for variable in VARIABLES.values() for name in variable.names)


_HEAD = """\
# Settings

<!-- Made by `authsvc config docs` from authsvc/settings; do not edit. -->

All settings are environment variables, read once at start. `authsvc config check` reports every problem
at once and exits with a status other than 0; `serve` refuses to start on the same problems. No message
repeats a secret.

- **Production is the default.** `AUTHSVC_ENV=development` embeds what is missing: Redis in memory (one
  worker), SQLite, and secrets and keys in `.authsvc/` under the current directory.
- **Secrets** (marked ◆) can come from a file: `<NAME>_FILE` holds its path, and one trailing newline of
  its content is dropped. `<NAME>` together with `<NAME>_FILE` is refused.
- **Empty is not unset:** an empty value is refused, except for `TRUSTED_PROXIES` and `ROLES`. Remove the
  variable to get its default.
- **Numbers** are plain digits; times are in the unit that the description names. Words can be in upper or
  lower case.
- **Weak secrets** are refused in production: `TOKEN_SECRET`, `PASSWORD_PEPPER`, `DATA_KEY` and
  `DATA_KEY_PREVIOUS` below 32 bytes, of one repeated character, equal to each other or to a password of
  Redis, or containing a placeholder such as `change-me`. Development warns.
- **Contradictions** are refused: `REDIS_URL` with `REDIS_HOST`, `REDIS_PORT`, `REDIS_USERNAME`,
  `REDIS_PASSWORD`, `REDIS_DB` or `REDIS_TLS`; Sentinel, cluster, URL and host with each other; a cluster
  with a database number; `PORT` equal to `METRICS_PORT`; `SESSION_IDLE_TTL` or `REDIS_AUTH_TOKEN_TTL` above
  `SESSION_MAX_TTL`.
- **Unknown names** are refused where they begin with `AUTHSVC_`, `BCRYPT_`, `CACHE_CB_`, `CACHE_KEY_`,
  `CACHE_LOCK_`, `RATE_LIMIT_` or `REVOCATION_`, and where they look like a slip of a setting
  (`SESSION_IDLE_TLL`, `TRUSTED_PROXY`, `DATABASE_URI`); the message says what was probably meant. What is
  only like a setting and may be another program's name (`DATABASE_URI`, `SESSION_TTL`) is a warning where
  that setting is there, too. So are other unknown names that begin with `CACHE_`, `JWT_`, `PASSWORD_`,
  `REDIS_`, `REFRESH_`, `SESSION_`, `TOKEN_`, `TRACING_`, `TRUSTED_` or `WEBAUTHN_`. `AUTHSVC_BIN`, which
  start scripts use, is ignored.
- **Kubernetes service links** (`REDIS_SERVICE_HOST`, `REDIS_PORT_6379_TCP`) are ignored, but not where a
  Service is named `authsvc`, and not `REDIS_PORT=tcp://…`, which takes the place of a setting: set
  `enableServiceLinks: false`.
- **Allowed, but logged as a warning at start:** a limit that is `off`, a `JWT_ISSUER` with http:// that is
  not of this host, `TRUSTED_PROXIES` that hold every address, Redis in memory, unknown names as above.
"""


def settings_page() -> str:
    """``docs/settings.md`` in full."""
    return "\n".join((_HEAD, *(_section(title, variables) for title, variables in SECTIONS)))


def _section(title: str, variables: tuple[Variable[object], ...]) -> str:
    rows = "".join(map(_row, variables))
    return f"## {title}\n\n| Variable | Meaning | Accepted | Default |\n|---|---|---|---|\n{rows}"


def _row(variable: Variable[object]) -> str:
    mark = " ◆" if variable.kind.is_secret else ""
    cells = (f"`{variable.name}`{mark}", variable.about, variable.kind.expected, _default(variable))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _default(variable: Variable[object]) -> str:
    notes = ["**required**"] if variable.is_required else []
    if variable.default is not None:
        notes.append(f"`{variable.default}`" if variable.default else "empty")
    if variable.development is not None:
        notes.append(f"development: `{variable.development}`")
    if variable.otherwise:
        notes.append(variable.otherwise)
    return "; ".join(notes) or "none"
