"""Organizations, roles and passwords in the console, in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from api_client import Api
from test_api_accounts import PASSWORD, SAME, WHO
from test_api_server import live_api

from broker.commands.accounts import AccountCommands
from broker.commands.context import shell_context
from broker.settings import SmtpSettings
from tests.apps import cheap_passwords
from tests.browser import CHROMIUM, Browser, browser
from tests.listeners import until
from tests.oidc import provider
from tests.smtp import receiving_mail

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine's PATH")
HEADING = "document.querySelector('h1')?.textContent"
CHOSEN = "document.querySelector('#nav select')?.selectedOptions[0]?.textContent"


@dataclass
class Installation:
    """Ann's two organizations, each with a queue, and one that is not hers."""

    api: Api
    url: str
    organizations: dict[str, str]
    queues: dict[str, str]

    def page(self, whose: str, path: str) -> str:
        return f"{self.url}/console#/o/{self.organizations[whose]}/{path}"


@pytest.fixture
async def installation() -> AsyncIterator[Installation]:
    async with live_api() as api:
        http, organizations, queues = api.bare, {}, {}
        for email, names in (("eve@example.com", ("foreign",)), (WHO["email"], ("first", "second"))):
            who = {**WHO, "email": email}
            assert (await http.put("/v1/accounts", json=who)).status_code == 200
            assert (await http.post("/v1/sessions", json=who, headers=SAME)).status_code == 200
            for name in names:
                made = (await http.put("/v1/organizations", json={"name": name}, headers=SAME)).json()
                organizations[name] = made["organization"]["id"]
                headers = {**SAME, "everput-organization": organizations[name]}
                queue = (await http.put("/v1/queues", json={"name": f"{name}/orders"}, headers=headers)).json()
                queues[name] = queue["queue"]["id"]
        yield Installation(api, str(http.base_url), organizations, queues)


async def signed_in(page: Browser, one: Installation) -> None:
    await page.size(1440, 900)
    await page.sign_in(one.url, WHO["email"], PASSWORD)
    page.errors.clear()


async def test_a_link_into_a_second_organization_switches_to_it_and_a_foreign_one_says_so(installation: Installation):
    one = installation
    async with browser() as page:
        await signed_in(page, one)
        await page.go(one.page("second", f"queues/{one.queues['second']}"))
        await page.until(f"{HEADING} === 'second/orders'")
        assert await page.run(CHOSEN) == "second"
        await page.go(one.page("first", "queues"))
        await page.until(f"{HEADING} === 'Queues' && {CHOSEN} === 'first'")
        assert "second" not in await page.run("document.querySelector('main').textContent")
        await page.go(one.page("foreign", f"queues/{one.queues['foreign']}"))
        await page.until(f"{HEADING} === 'Not your organization'")
        told = await page.run("document.querySelector('main').textContent")
        assert one.organizations["foreign"] in told
        assert WHO["email"] in told
        assert page.errors == []


async def test_an_address_that_names_no_organization_still_works(installation: Installation):
    one = installation
    async with browser() as page:
        await signed_in(page, one)
        await page.go(f"{one.url}/console#/queues/{one.queues['first']}")
        await page.until(f"{HEADING} === 'first/orders'")
        assert await page.run("location.hash") == f"#/o/{one.organizations['first']}/queues/{one.queues['first']}"
        await page.go(f"{one.url}/console#/log?type=queue")
        await page.until(f"location.hash.startsWith('#/o/{one.organizations['first']}/log?type=queue')")
        assert page.errors == []


async def test_the_choice_of_an_organization_leads_to_its_overview(installation: Installation):
    one = installation
    async with browser() as page:
        await signed_in(page, one)
        await page.go(one.page("first", "queues"))
        await page.until(f"{HEADING} === 'Queues'")
        await page.run(
            "(() => { const choice = document.querySelector('#nav select'); "
            f"choice.value = '{one.organizations['second']}'; choice.dispatchEvent(new Event('change')); }})()"
        )
        await page.until(f"location.hash === '#/o/{one.organizations['second']}/overview' && {CHOSEN} === 'second'")
        assert page.errors == []


async def test_what_the_role_lacks_is_refused_with_the_reason(installation: Installation):
    one, control = installation, installation.api.log.control
    people = AccountCommands(control, control, cheap_passwords())
    boss = await people.create_account("boss@example.com", PASSWORD)
    await people.members.join(boss.id, one.organizations["first"])
    account = control.state.accounts.account(WHO["email"])
    await people.members.change_role(shell_context(one.organizations["first"]), account.id, "auditor")
    async with browser() as page:
        await signed_in(page, one)
        await page.go(one.page("first", "queues"))
        await page.until(f"{HEADING} === 'Queues'")
        create = "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Create queue')"
        assert await page.run(f"{create}.getAttribute('aria-disabled')") == "true"
        await page.run(f"{create}.click()")
        await page.until("document.querySelector('.notice')?.textContent.includes('lacks the scope queues')")
        assert await page.run("document.querySelector('dialog')") is None
        await page.go(one.page("first", "keys"))
        await page.until(f"{HEADING} === 'Not for your role'")
        await page.go(one.page("first", "members"))
        await page.until(f"{HEADING} === 'Members'")
        assert await page.run("document.querySelectorAll('td select').length") == 0
        await page.go(one.page("second", "members"))
        await page.until("document.querySelectorAll('td select').length === 1")
        assert await page.violations() == []
        assert page.errors == []


async def fill(page: Browser, **values: Any) -> None:
    for name, value in values.items():
        await page.run(f"document.querySelector('input[name={name}]').value = '{value}'")
    await page.run("document.querySelector('button[type=submit]').click()")


async def test_a_forgotten_password_is_reset_by_mail():
    async with receiving_mail() as inbox, browser() as page:
        smtp = SmtpSettings(host="127.0.0.1", port=inbox.port, tls=False, sender="everput@example.com")
        async with live_api(smtp=smtp, public_url="http://everput.example") as api:
            url = str(api.bare.base_url)
            assert (await api.bare.put("/v1/accounts", json=WHO)).status_code == 200
            await page.size(390, 844)
            await page.go(f"{url}/console")
            await page.until(f"{HEADING} === 'Sign in'")
            page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
            reset = "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Reset password')"
            await page.run(f"{reset}.click()")
            await page.until(f"{HEADING} === 'Reset password'")
            await fill(page, email=WHO["email"])
            await until(lambda: len(inbox.mails) == 1, what="the mail arrives")
            found = re.search(r"http://everput\.example(/console#/reset/\S+)", inbox.mails[0].get_content())
            assert found is not None
            await page.go(url + found[1])
            await page.until("document.querySelector('input[name=new_password]') !== null")
            await fill(page, new_password="a new horse battery")
            await page.until(f"{HEADING} === 'Sign in'")
            await fill(page, email=WHO["email"], password="a new horse battery")
            await page.until(f"{HEADING} === 'Create your organization'")
            assert await page.run("document.querySelector('#nav .who').textContent") == WHO["email"]
            assert page.errors == []
            await page.go(url + found[1])
            await fill(page, new_password="yet another horse")
            await page.until(
                "document.querySelector('.alert:not([hidden])')?.textContent.includes('not valid any more')"
            )


async def test_a_person_signs_in_with_the_provider_and_is_told_why_not():
    async with (
        provider() as acme,
        browser() as page,
        live_api(oidc=acme.settings(), public_url="http://everput.example") as api,
    ):
        url = acme.back = str(api.bare.base_url).rstrip("/")
        await page.size(390, 844)
        acme.person["email_verified"] = False
        await page.go(f"{url}/console")
        await page.until(f"{HEADING} === 'Sign in'")
        page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
        button = "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Sign in with Acme & Co')"
        await page.run(f"{button}.click()")
        await page.until("document.querySelector('[role=alert]')?.textContent.includes('has not verified')")
        assert await page.violations() == []
        acme.person["email_verified"] = True
        page.errors.clear()
        await page.run(f"{button}.click()")
        await page.until(f"{HEADING} === 'Create your organization'")
        assert await page.run("document.querySelector('#nav .who').textContent") == "ann@example.com"
        assert await page.run("document.cookie") == ""
        assert page.errors == []


async def test_a_person_sees_the_linked_provider_and_unlinks_it_once_there_is_a_password():
    async with (
        provider() as acme,
        browser() as page,
        live_api(oidc=acme.settings(), public_url="http://everput.example") as api,
    ):
        url = acme.back = str(api.bare.base_url).rstrip("/")
        button = "[...document.querySelectorAll('button')].find((one) => one.textContent === 'Sign in with Acme & Co')"
        main = "document.querySelector('main')?.textContent"
        unlink = page.page.get_by_role("button", name="Unlink provider", exact=True)
        await page.size(390, 844)

        async def sign_in() -> None:
            """Sign in with the provider, and open the page with the password and the provider."""
            await page.go(f"{url}/console")
            await page.until(f"{HEADING} === 'Sign in'")
            page.errors.clear()  # Chromium reports the 401 of the page's question who is signed in.
            await page.run(f"{button}.click()")
            await page.until(f"{HEADING} === 'Create your organization'")
            await page.go(f"{url}/console#/password")
            await page.until(f"{HEADING} === 'Change password'")
            await page.until(f"{main}.includes({f'ann@example.com can also sign in with {acme.issuer}.'!r})")
            assert page.errors == []

        await sign_in()
        assert "This account has no password" in await page.run(main)
        assert await unlink.count() == 0
        assert await page.violations() == []
        people = AccountCommands(api.log.control, api.log.control, cheap_passwords())
        account = api.log.control.state.accounts.account("ann@example.com")
        await people.replace_password(account, PASSWORD, request_id="r")
        await sign_in()
        assert await page.violations() == []
        await page.page.get_by_label("Your password", exact=True).fill("a wrong password")
        await unlink.click()
        await page.until("document.querySelector('.error:not([hidden])')?.textContent.includes('password is wrong')")
        page.errors.clear()  # Chromium reports the 422.
        await page.page.get_by_label("Your password", exact=True).fill(PASSWORD)
        await unlink.click()
        await page.until("document.body.textContent.includes('Provider unlinked.')")
        await page.until(f"!{main}.includes('can also sign in with')")
        assert api.log.control.state.accounts.account("ann@example.com").identity is None
        assert page.errors == []
