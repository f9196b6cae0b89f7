"""Fetching a picture from an address that the vendor's list gives: little is believed, and no inner host is reached."""

import asyncio
import datetime as dt
import ipaddress
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.upstream.pictures import MAX_PICTURE_BYTES, NoPicture, Picture, PictureClient, decoded, is_public
from tests.processes import eventually
from tests.upstream.vendor import RawVendor

PNG = b"\x89PNG\r\n\x1a\n and so on"
SVG = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
GENEROUS_SECONDS = 5.0


def shown(body: bytes, media_type: str, *headers: str, status: int = 200, length: int | None = None) -> bytes:
    """A complete answer with a picture, or what is said to be one."""
    told = length if length is not None else len(body)
    head = [f"HTTP/1.1 {status} Said", f"content-length: {told}", f"content-type: {media_type}", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@pytest.fixture
async def host() -> AsyncIterator[RawVendor]:
    async with RawVendor({"other": shown(PNG, "image/png")}) as running:
        yield running


def client(
    *,
    loopback: bool = True,
    seconds: float = 3.0,
    ca_pem: bytes | None = None,
    look_up: Callable[[str, int], Sequence[str]] = lambda _host, _port: ["127.0.0.1"],
) -> PictureClient:
    return PictureClient(user_agent="test", loopback=loopback, seconds=seconds, ca_pem=ca_pem, look_up=look_up)


def found_at(addresses: Sequence[str], *, loopback: bool) -> PictureClient:
    return client(loopback=loopback, look_up=lambda _host, _port: addresses)


async def refusal(pictures: PictureClient, address: str) -> str:
    with pytest.raises(NoPicture) as refused:
        await pictures.fetch(address)
    return refused.value.reason


# What is a picture


@pytest.mark.parametrize(
    ("body", "media_type"),
    [
        (PNG, "image/png"),
        (PNG, "IMAGE/PNG ; charset=binary"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"GIF89a", "image/gif"),
        (b"RIFF\n\x00\x00\x00WEBPVP8 ", "image/webp"),
        (SVG, "image/svg+xml"),
        (SVG, "image/svg+xml;charset=utf-8"),
        (PNG.ljust(MAX_PICTURE_BYTES), "image/png"),
    ],
)
async def test_a_picture_is_what_says_so_and_begins_so(host: RawVendor, body: bytes, media_type: str) -> None:
    host.says["other"] = shown(body, media_type)
    picture = await client().fetch(f"{host.url}/logo")
    assert picture == Picture(media_type.partition(";")[0].strip().lower(), body)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (shown(b"<html><script>", "image/png"), "type"),
        (shown(PNG, "image/jpeg"), "type"),
        (shown(PNG, "text/html"), "type"),
        (shown(PNG, "image/x-icon"), "type"),
        (shown(PNG, "application/octet-stream"), "type"),
        (shown(PNG, ""), "type"),
        (b"HTTP/1.1 200 Said\r\ncontent-length: 8\r\n\r\n" + PNG[:8], "type"),
        (shown(b"", "image/svg+xml"), "type"),
        (shown(SVG, "image/svg+xml", "content-encoding: gzip"), "type"),
        (shown(PNG, "image/png", status=404), "status"),
        (shown(PNG, "image/png", status=206), "status"),
        (shown(PNG, "image/png", status=500), "status"),
        (shown(PNG, "image/png", "location: /elsewhere", status=302), "status"),
        (shown(PNG, "image/png", length=100), "connection"),
        (b"HTTP/1.1 200 Said\r\nnonsense", "connection"),
        (b"\x16\x03\x01", "connection"),
        (b"HTTP/1.1 200 Said\r\ncontent-type: \xff\xfe\r\ncontent-length: 0\r\n\r\n", "connection"),
        (
            b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: many\r\ntransfer-encoding: chunked\r\n\r\n",
            "connection",
        ),
        (b"", "connection"),
    ],
)
async def test_nothing_else_is_one(host: RawVendor, answer: bytes, reason: str) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        writer.close()

    host.says["other"] = say
    assert await refusal(client(), f"{host.url}/logo") == reason
    assert [each.line for each in host.seen] == ["GET /logo HTTP/1.1"]


async def test_a_picture_that_is_told_to_be_too_large_is_not_read(host: RawVendor) -> None:
    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(shown(PNG, "image/png", length=MAX_PICTURE_BYTES + 1))
        await asyncio.Event().wait()

    host.says["other"] = say
    assert await refusal(client(), f"{host.url}/logo") == "size"


async def test_one_that_turns_out_too_large_is_cut_off(host: RawVendor) -> None:
    sent = 0
    ended = asyncio.Event()

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 Said\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = PNG.ljust(4096)
        with suppress(OSError):
            while not writer.is_closing():
                writer.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
                await writer.drain()
                sent += len(chunk)
        ended.set()

    host.says["other"] = pour
    assert await refusal(client(), f"{host.url}/logo") == "size"
    async with asyncio.timeout(GENEROUS_SECONDS):
        await ended.wait()
    assert sent < 64 * 1024 * 1024, "no more than the sockets' buffers hold"


@pytest.mark.parametrize(
    ("address", "picture"),
    [
        ("data:image/png;base64,iVBORw==", Picture("image/png", b"\x89PNG")),
        ("data:image/svg+xml;charset=utf-8,%3Csvg/%3E", Picture("image/svg+xml", b"<svg/>")),
        ("data:IMAGE/GIF;base64,R0lG", Picture("image/gif", b"GIF")),
        ("data:image/png;base64,!", None),
        ("data:image/png,", None),
        ("data:text/html,<script>", None),
        ("data:image/x-icon;base64,AAAA", None),
        ("https://example.org/logo.png", None),
        ("", None),
        ("data:image/png," + "a" * 65_536, Picture("image/png", b"a" * 65_536)),
        ("data:image/png," + "a" * 65_537, None),
        ("data:image/png," + "%61" * 65_537, None),
    ],
)
def test_only_pictures_of_bearable_size_are_decoded(address: str, picture: Picture | None) -> None:
    assert decoded(address) == picture


# How long


async def test_the_whole_call_has_one_deadline(host: RawVendor) -> None:
    async def drip(writer: asyncio.StreamWriter) -> None:
        answer = shown(PNG.ljust(1000), "image/png")
        for position in range(len(answer)):
            writer.write(answer[position : position + 1])
            await asyncio.sleep(0.05)

    async def hang(_writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    for script in (drip, hang):
        host.says["other"] = script
        started = time.monotonic()
        assert await refusal(client(seconds=0.3), f"{host.url}/logo") == "slow"
        assert time.monotonic() - started < GENEROUS_SECONDS


async def test_a_look_up_that_hangs_counts_as_well() -> None:
    def hang(_host: str, _port: int) -> list[str]:
        time.sleep(0.5)
        return ["127.0.0.1"]

    assert await refusal(client(seconds=0.1, look_up=hang), "https://pictures.example/") == "slow"


async def test_a_host_that_refuses_is_told(host: RawVendor) -> None:
    async with RawVendor() as gone:
        address = gone.url
    assert await refusal(client(), address) == "connection"
    assert host.connections == 0


# What is sent


async def test_a_host_learns_nothing_of_us_and_leaves_nothing_with_us(host: RawVendor) -> None:
    host.says["other"] = shown(PNG, "image/png", "set-cookie: a=b")
    pictures = client()
    for _ in range(2):
        await pictures.fetch(f"{host.url}/logo?size=1#part")
    assert [each.line for each in host.seen] == ["GET /logo?size=1 HTTP/1.1"] * 2
    names = {line.partition(":")[0].lower() for line in host.seen[1].head.split("\r\n")[1:] if line}
    assert names == {"accept", "accept-encoding", "host", "user-agent"}
    assert host.connections == 2


# Where to


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.0.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("192.0.0.192", False),
        ("0.0.0.0", False),  # noqa: S104 -- nothing is bound
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
        ("fd00:ec2::254", False),
        ("fe80::1%eth0", False),
        ("fec0::1", False),
        ("ff0e::1", False),
    ],
)
def test_an_address_is_public_if_nothing_inner_hides_in_it(address: str, *, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


INNER = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "fd00::1"]


@pytest.mark.parametrize("loopback", [True, False])
@pytest.mark.parametrize("inner", INNER)
async def test_no_name_leads_to_an_inner_host(inner: str, *, loopback: bool) -> None:
    for addresses in ([inner], ["93.184.216.34", inner], [inner, "93.184.216.34"]):
        if loopback and addresses == [inner] and ipaddress.ip_address(inner).is_loopback:
            continue
        assert await refusal(found_at(addresses, loopback=loopback), "https://pictures.example/logo.png") == "place"


@pytest.mark.parametrize(
    "literal", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "[::1]", "[::ffff:7f00:1]", "10.0.0.1"]
)
async def test_no_literal_does_either(literal: str) -> None:
    def never(_host: str, _port: int) -> list[str]:
        raise AssertionError

    assert await refusal(client(loopback=False, look_up=never), f"https://{literal}/logo.png") == "place"


@pytest.mark.parametrize(
    "address",
    [
        "http://pictures.example/logo.png",
        "https://pictures.example:8443/logo.png",
        "https://somebody@pictures.example/logo.png",
        "https://a:b@pictures.example/logo.png",
        "https://:b@pictures.example/logo.png",
        "ftp://pictures.example/logo.png",
        "file:///etc/passwd",
        "https://",
        "https://pict ures.example/",
        "https://pictures.example/" + "a" * 2048,
        "logo.png",
        "",
    ],
)
async def test_other_addresses_are_not_even_looked_up(address: str) -> None:
    def never(_host: str, _port: int) -> list[str]:
        raise AssertionError

    assert await refusal(client(loopback=False, look_up=never), address) == "address"


async def test_the_sandbox_takes_plain_http_from_this_machine_alone() -> None:
    for outer in ("http://93.184.216.34/", "https://93.184.216.34:8443/", "http://10.0.0.1/"):
        assert await refusal(client(), outer) == "place"
    assert await refusal(found_at(["93.184.216.34"], loopback=True), "http://pictures.example/") == "place"


@pytest.mark.parametrize("answer", [OSError("no such name"), [], ["nonsense"]])
async def test_a_name_without_an_address_is_told(answer: list[str] | OSError) -> None:
    def look_up(_host: str, _port: int) -> list[str]:
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert await refusal(client(look_up=look_up), "https://pictures.example/") in {"name", "place"}


@pytest.mark.parametrize(
    "name", ["pictures.example", "Pictures.EXAMPLE", "pictures.example.", "bücher.example", "xn--bcher-kva.example"]
)
async def test_the_connection_goes_to_the_address_that_was_looked_at(host: RawVendor, name: str) -> None:
    """None of these names exists: a second look-up would fail."""
    asked: list[tuple[str, int]] = []

    def look_up(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    picture = await client(look_up=look_up).fetch(f"http://{name}:{host.port}/logo")
    assert picture.body == PNG
    told = name.lower().replace("ü", "u") if name.isascii() else "xn--bcher-kva.example"
    assert asked == [(told, host.port)]
    assert f"host: {told}:{host.port}" in host.seen[0].head.lower()


# HTTPS


def certificate(name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM), key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@asynccontextmanager
async def tls_host(directory: Path, name: str) -> AsyncIterator[tuple[int, bytes, list[str | None]]]:
    """A host with a certificate for `name`; its port, the certificate, and the names that clients asked for."""
    pem, key = certificate(name)
    path = directory / "host.pem"
    path.write_bytes(pem + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, asked, _context: names.append(asked)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(shown(PNG, "image/png"))
            await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], pem, names
    finally:
        server.close()


async def test_a_host_proves_its_name_though_its_address_is_given(tmp_path: Path) -> None:
    async with tls_host(tmp_path, "pictures.example") as (port, ca_pem, names):
        address = f"https://pictures.example:{port}/logo"
        assert (await client(ca_pem=ca_pem).fetch(address)).body == PNG
        assert names == ["pictures.example"]
        assert await refusal(client(), address) == "connection"
        assert await refusal(client(ca_pem=ca_pem), f"https://other.example:{port}/logo") == "connection"
        await eventually(lambda: len(names) == 3)
