"""Users, organisations, and repositories that are closed."""

from fastapi import APIRouter
from sqlmodel import Session

from adapterhub.hub.api import threads
from adapterhub.hub.api.deps import CallerDep, HubDep
from adapterhub.hub.api.rest.schemas import (
    AccountSettings,
    CreatedUser,
    Disabling,
    MemberList,
    MemberView,
    MyOrganisation,
    MyOrganisationList,
    NewOrganisation,
    NewRole,
    NewUser,
    OrganisationView,
    UnfitPatches,
    UserList,
    UserView,
)
from adapterhub.hub.context import Hub
from adapterhub.hub.services import accounts, fitness, repos
from adapterhub.hub.services.access import Caller, require_member

router = APIRouter(prefix="/api", tags=["administration"])


@router.post("/admin/users", status_code=201)
async def create_user(new: NewUser, hub: HubDep, caller: CallerDep) -> CreatedUser:
    """Create a user and a first token, which is shown this once. For administrators."""

    def work(session: Session) -> CreatedUser:
        account = accounts.create_user(
            session, caller, new.name, fullname=new.fullname, email=new.email, is_admin=new.is_admin
        )
        role = "admin" if new.is_admin else "write"
        return CreatedUser(name=account.name, token=accounts.issue_token(session, caller, account, "first", role)[1])

    return await threads.run(hub.db.transact, work)


@router.get("/admin/users")
async def list_users(hub: HubDep, caller: CallerDep) -> UserList:
    """List every user. For administrators."""
    return await threads.run(_users, hub, caller)


@router.put("/admin/repos/{namespace}/{name}", status_code=204)
async def set_disabled(namespace: str, name: str, wanted: Disabling, hub: HubDep, caller: CallerDep) -> None:
    """Close a repository to everybody but administrators, or open it again. For administrators."""
    reason = wanted.reason if wanted.disabled else None
    await threads.run(
        hub.db.transact, lambda session: repos.set_disabled(session, caller, f"{namespace}/{name}", reason)
    )


@router.post("/organisations", status_code=201)
async def create_organisation(new: NewOrganisation, hub: HubDep, caller: CallerDep) -> OrganisationView:
    """Create an organisation; you become its administrator."""

    def work(session: Session) -> OrganisationView:
        account = accounts.create_organisation(session, caller, new.name, fullname=new.fullname)
        return OrganisationView(name=account.name, fullname=account.fullname)

    return await threads.run(hub.db.transact, work)


@router.get("/organisations")
async def list_organisations(hub: HubDep, caller: CallerDep) -> MyOrganisationList:
    """List your organisations, with your role in each."""
    return await threads.run(_organisations, hub, caller)


@router.get("/organisations/{organisation}/members")
async def list_members(organisation: str, hub: HubDep, caller: CallerDep) -> MemberList:
    """List the members of an organisation with their roles. For its members."""
    return await threads.run(_members, hub, caller, organisation)


@router.put("/organisations/{organisation}/members/{user}", status_code=204)
async def set_member(organisation: str, user: str, new: NewRole, hub: HubDep, caller: CallerDep) -> None:
    """Give a user a role in an organisation, or take it away. For its administrators; everybody may leave."""
    await threads.run(
        hub.db.transact, lambda session: accounts.set_member(session, caller, organisation, user, new.role)
    )


@router.get("/accounts/{account}/settings")
async def account_settings(account: str, hub: HubDep, caller: CallerDep) -> AccountSettings:
    """What a user or organisation has chosen for its repositories. For its members."""
    return await threads.run(_settings, hub, caller, account)


@router.put("/accounts/{account}/settings")
async def choose_account_settings(account: str, new: UnfitPatches, hub: HubDep, caller: CallerDep) -> AccountSettings:
    """Choose what becomes of unfit patches in the repositories of a user or organisation. For its administrators."""

    def work(session: Session) -> AccountSettings:
        return _chosen(fitness.choose(session, hub, caller, account, new.unfit_patches))

    return await threads.run(hub.db.transact, work)


def _settings(hub: Hub, caller: Caller, account: str) -> AccountSettings:
    with hub.db.read() as session:
        return _chosen(fitness.choice(session, hub, caller, account))


def _chosen(choice: fitness.Choice) -> AccountSettings:
    return AccountSettings(account=choice.account, unfit_patches=choice.chosen, effective=choice.effective)


def _organisations(hub: Hub, caller: Caller) -> MyOrganisationList:
    with hub.db.read() as session:
        found = accounts.whoami(session, caller).organisations
        return MyOrganisationList(items=[MyOrganisation.model_validate(one, from_attributes=True) for one in found])


def _members(hub: Hub, caller: Caller, organisation: str) -> MemberList:
    with hub.db.read() as session:
        found = accounts.members(session, organisation)
        require_member(session, caller, accounts.find(session, organisation))
        return MemberList(items=[MemberView(name=a.name, fullname=a.fullname, role=role) for a, role in found])


def _users(hub: Hub, caller: Caller) -> UserList:
    with hub.db.read() as session:
        found = accounts.list_users(session, caller)
        return UserList(items=[UserView.model_validate(account, from_attributes=True) for account in found])
