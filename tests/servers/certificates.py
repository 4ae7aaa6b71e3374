"""Certificates for servers of the test run."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    from pathlib import Path


class Certificate(NamedTuple):
    """The files of one, in PEM."""

    public: Path
    private: Path


def self_signed(folder: Path, host: str, *, days: int = 1) -> Certificate:
    """Make one for *host*, a name or an IPv4 address, that is its own CA and ends in *days*; < 0: ended."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=9))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([_named(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / f"{host}.{days}.pem", folder / f"{host}.{days}.key")
    files.public.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    files.private.chmod(0o600)
    return files


def _named(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(IPv4Address(host))
    return x509.DNSName(host)
