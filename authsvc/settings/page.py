"""The settings page of the documentation, made from the table that the service reads by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from authsvc.settings.model import SECTIONS

if TYPE_CHECKING:
    from authsvc.settings.declaration import Variable

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
