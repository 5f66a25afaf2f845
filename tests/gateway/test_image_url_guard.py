"""Nobody reaches through the gateway what they could not reach themselves."""

import itertools
from ipaddress import ip_address

import pytest
from api_key_maker import expect_problem
from image_fetching import PRIVATE, Names, detect, settings_for, show
from image_server import ImageServer, redirect
from live_gateway import LiveGateway, live_gateway

from superlink.public_addresses import is_public

pytestmark = [pytest.mark.surface, pytest.mark.faults]

NOT_PUBLIC = [
    "0.0.0.0",  # noqa: S104
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450::1"]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_addresses_of_networks_of_somebodys_own_are_not_public(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(ip_address(text))


OWN_NAMES = ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "0", "[::1]"]


async def test_this_machine_is_not_reached_by_any_name(image_host: ImageServer) -> None:
    """With the machine's own resolver, and a image_host that would answer."""
    async with live_gateway(image_urls=settings_for(image_host, allowed_networks=[])) as gateway:
        for host in (*OWN_NAMES, "[::ffff:127.0.0.1]"):
            response = await detect(gateway, f"http://{host}:{image_host.port}/dog.png")
            expect_problem(response, 400, "remote_image_refused")
    assert not image_host.received


async def test_a_name_at_an_address_that_is_not_public_is_refused(fetching: LiveGateway, names: Names) -> None:
    for address in NOT_PUBLIC:
        if address == "127.0.0.1":
            # Stands for the public internet here.
            continue
        names.answers["images.example"] = [[address]]
        problem = expect_problem(await detect(fetching, "http://images.example/dog.png"), 400, "remote_image_refused")
        assert "images.example" in problem["detail"]
        # Whoever asks does not learn where inner names lead.
        assert f" {address}" not in problem["detail"]


async def test_one_private_address_among_public_ones_is_enough_to_refuse(
    fetching: LiveGateway, image_host: ImageServer, private_host: ImageServer, names: Names
) -> None:
    for addresses in (["127.0.0.1", PRIVATE], [PRIVATE, "127.0.0.1"]):
        names.answers["images.example"] = [addresses]
        response = await detect(fetching, f"http://images.example:{image_host.port}/dog.png")
        expect_problem(response, 400, "remote_image_refused")
    assert not image_host.received
    assert not private_host.received


async def test_a_name_that_changes_its_meaning_gains_nothing(
    fetching: LiveGateway, image_host: ImageServer, private_host: ImageServer, names: Names
) -> None:
    """DNS rebinding: public when it is checked, private a moment later."""
    names.answers["images.example"] = [["127.0.0.1"], [PRIVATE]]
    url = f"http://images.example:{image_host.port}/dog.png"

    assert (await detect(fetching, url)).status_code == 200
    assert names.asked == ["images.example"]
    assert f"host: images.example:{image_host.port}\r\n" in image_host.received[0].lower()

    expect_problem(await detect(fetching, url), 400, "remote_image_refused")
    assert not private_host.received


FORBIDDEN_LOCATIONS = [
    "http://127.0.0.2:{port}/dog.png",
    "//127.0.0.2:{port}/dog.png",
    "http://inside.example:{port}/dog.png",
    "http://[::ffff:127.0.0.1]:{port}/dog.png",
    "http://127.0.0.1:22/dog.png",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/",
    "http://user:word@127.0.0.1:{port}/dog.png",
    "http://169.254.169.254/latest/meta-data/",
]


async def test_redirects_are_checked_like_the_first_address(
    fetching: LiveGateway, image_host: ImageServer, private_host: ImageServer, names: Names
) -> None:
    names.answers["inside.example"] = [[PRIVATE]]
    statuses = ("301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary", "308 Permanent")
    for location, status in itertools.product(FORBIDDEN_LOCATIONS, statuses):
        image_host.received.clear()
        image_host.replies["/away"] = redirect(location.format(port=image_host.port), status)
        response = await detect(fetching, f"{image_host.url}/away")
        expect_problem(response, 400, "remote_image_refused")
        assert len(image_host.received) == 1
    assert not private_host.received


async def test_a_few_redirects_are_followed(fetching: LiveGateway, image_host: ImageServer) -> None:
    image_host.replies |= {"/1": redirect("/2"), "/2": redirect(f"{image_host.url}/3"), "/3": redirect("dog.png")}
    assert (await detect(fetching, f"{image_host.url}/1")).status_code == 200

    image_host.replies["/0"] = redirect("/1")
    problem = expect_problem(await detect(fetching, f"{image_host.url}/0"), 400, "image_fetch_failed")
    assert "more than 3 times" in problem["detail"]
    image_host.replies["/round"] = redirect("/round")
    expect_problem(await detect(fetching, f"{image_host.url}/round"), 400, "image_fetch_failed")


NO_ADDRESSES = [
    "file:///etc/passwd",
    "ftp://127.0.0.1/dog.png",
    "dog.png",
    "http://",
    "http:///dog.png",
    "http://user@127.0.0.1/dog.png",
    "http://user:word@127.0.0.1/dog.png",
    "http://127.0.0.1:22/dog.png",
    "http://127.0.0.1:0/dog.png",
    "http://127.0.0.1:99999/dog.png",
    "http://exa mple.com/dog.png",
    "http://unknown.invalid\\@127.0.0.1/dog.png",
    "http://[::1",
    "http://a\nb/",
    "http://127.0.0.1/" + "x" * 3000,
]


async def test_addresses_that_are_none_are_refused(fetching: LiveGateway, image_host: ImageServer) -> None:
    for url in NO_ADDRESSES:
        for path, body in (("/v1/detect", {"image": url, "phrase": "dog"}), ("/v1/chat/completions", show(url))):
            expect_problem(await fetching.http.post(path, json=body), 400, "remote_image_refused")
    assert not image_host.received


async def test_the_port_that_is_missing_is_named(fetching: LiveGateway) -> None:
    problem = expect_problem(await detect(fetching, "http://127.0.0.1:22/dog.png"), 400, "remote_image_refused")
    assert "80, 443" in problem["detail"]


async def test_names_that_nobody_knows_are_refused(image_host: ImageServer) -> None:
    async with live_gateway(image_urls=settings_for(image_host)) as gateway:
        for host in ("no-such-host.invalid", "x" * 64 + ".invalid"):
            expect_problem(await detect(gateway, f"http://{host}/dog.png"), 400, "remote_image_refused")
