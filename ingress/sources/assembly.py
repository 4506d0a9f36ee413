"""How the text of a source, its preset and the secrets become a compiled Source, with every fault at its line.

A source that cannot be made complete is not made at all: unset secrets, no verifier, an address that is signed and not
known are faults, never a source that lets more through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from pydantic import ValidationError

from ingress.sources.complaints import complain_all
from ingress.sources.contacts import ContactPaths
from ingress.sources.document import ContactDoc, EntryDoc, EventDoc, HandshakeDoc, Keyed, SourceDoc
from ingress.sources.handshakes import Challenge, GetEcho, Handshakes, Ignore, Options
from ingress.sources.keys import Secret, serving
from ingress.sources.notation import SecretRef
from ingress.sources.parse import BodySpec, UnreadableBodyError, decode
from ingress.sources.presets import PRESETS, merged, preset
from ingress.sources.reading import Changed, EventPaths, headers_read
from ingress.sources.request import WebhookRequest
from ingress.sources.signatures import Signature
from ingress.sources.source import KEPT_HEADERS, SECRET_HEADERS, Ack, Source
from ingress.sources.verifiers import Verifier, compile_verifier
from rules.messages import kind
from rules.paths import CompiledPath, Scope, Steps, parse_payload_path, text_of
from rules.rule_set import SourceText
from rules.vocabulary import Json, RuleFault
from rules.yaml_reader import Path, SourceMap

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
#: Shorter secrets can be found by trying.
SHORT_SECRET: Final = 16


def build(
    texts: Sequence[SourceText], environment: Mapping[str, str], *, public_url: str | None
) -> tuple[dict[str, Source], list[RuleFault]]:
    """Compile every entry of `sources:`; return the good ones by name, and all faults of the others.

    `environment` holds the variables that `{env: NAME}` names; `public_url` is the address senders know, for signatures
    that cover it. Warnings are with each Source.
    """
    sources: dict[str, Source] = {}
    faults: list[RuleFault] = []
    for text in texts:
        assembly = _Assembly(text, environment, public_url)
        source = assembly.source()
        if text.name in sources:
            assembly.complain((), f'a source named "{text.name}" stands in another file already', at_key=True)
        if source and not assembly.faults:
            sources[text.name] = replace(source, warnings=tuple(assembly.places.warnings))
        faults += sorted(assembly.faults, key=lambda fault: (fault.line, fault.column))
    return sources, faults


class _Assembly:
    """One source in the making; complains into places of its own, so that building again starts afresh."""

    def __init__(self, text: SourceText, environment: Mapping[str, str], public_url: str | None) -> None:
        self.text = text
        self.environment = environment
        self.public_url = public_url
        self.places = SourceMap(file=text.places.file, values=text.places.values, keys=text.places.keys)

    @property
    def faults(self) -> list[RuleFault]:
        return self.places.faults

    def complain(self, path: Path, message: str, *, at_key: bool = False) -> None:
        self.places.complain((*self.text.path, *path), message, at_key=at_key)

    def source(self) -> Source | None:
        """Return the source, or None after complaining."""
        if not _NAME.fullmatch(self.text.name):
            self.complain(
                (), "a source's name is part of its address: use letters, digits, - and _ (63 at most)", at_key=True
            )
        raw = self._merged()
        if raw is None:
            return None
        try:
            doc = SourceDoc.model_validate(raw)
        except ValidationError as error:
            complain_all(error, SourceDoc, self.places, self.text.path)
            self._unset(raw, ())
            return None
        return self._compiled(doc)

    def _unset(self, value: Json, path: Path) -> None:
        """Complain about unset variables of a source that is faulty anyway, so that one run tells all."""
        if isinstance(value, Mapping) and set(value) == {"env"} and isinstance(value["env"], str):
            own = value["env"].startswith("LEADWIRE_")  # refused already, set or not
            if not own and not self.environment.get(value["env"], "").strip():
                self.complain(path, f"{value['env']} is not set, or empty")
            return
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
        for step, one in pairs:
            self._unset(one, (*path, step))

    def _merged(self) -> Mapping[str, Json] | None:
        own: Json = self.text.value  # as a user wrote it: anything
        if not isinstance(own, Mapping):
            self.complain((), "must be a mapping, such as {extend: generic, secrets: [{env: CRM_SECRET}]}")
            return None
        name = own.get("extend")
        if name is None:
            if "auth" not in own:
                hint = f"; did you mean extend: {self.text.name}" if self.text.name in PRESETS else ""
                self.complain(
                    (),
                    f"has no auth: say how its requests prove where they are from, or extend a preset{hint}",
                    at_key=True,
                )
                return None
            return own
        if not isinstance(name, str):
            self.complain(("extend",), f"must be the name of one preset, such as generic, not {kind(name)}")
            return None
        if name not in PRESETS:
            near = get_close_matches(name, PRESETS, n=1)
            hint = f", did you mean {near[0]}" if near else ""
            self.complain(("extend",), f'there is no preset "{name}"{hint}; presets: {", ".join(PRESETS)}')
            return None
        return merged(preset(name), own)

    def _compiled(self, doc: SourceDoc) -> Source | None:
        verifiers = self._verifiers(doc)
        handshakes = self._handshakes(doc)
        if self.faults:
            return None
        if not verifiers:
            self.complain(("auth",), "no verifier is enabled: nothing could ever be accepted")
            return None
        paths = _event_paths(self.text.name, doc, _covered(verifiers))
        self._warn(doc, paths)
        secret = SECRET_HEADERS.union(*(verifier.proof.secret_headers for verifier in verifiers))
        return Source(
            name=self.text.name,
            preset=doc.extend,
            verifiers=verifiers,
            handshakes=handshakes,
            body=_body_spec(doc),
            body_limit_bytes=doc.body.limit_bytes,
            splits=doc.split or (),
            paths=paths,
            redact=(*doc.redact, *_token_paths(doc)),
            kept_headers=(KEPT_HEADERS | _read_headers(doc)) - secret,
            public_base=self._public_base(doc),
            ack=Ack(**doc.ack.model_dump()),
        )

    # -- secrets -------------------------------------------------------------------------------------------------------

    def _secrets(self, refs: tuple[SecretRef, ...] | None, path: Path) -> list[Secret]:
        found = []
        for index, ref in enumerate(refs or ()):
            at = (*path, index)
            if ref.env is None:
                secret = Secret(text=ref.text or "", name=".".join(map(str, at)))
            else:
                secret = Secret(text=self.environment.get(ref.env, "").strip("\r\n"), name=ref.env)
            if not secret.text.strip():
                what = f"{ref.env} is not set, or empty" if ref.env else "the secret is empty"
                self.complain(at, f"{what}: without its secret this source accepts nothing, so it is not started")
                continue
            if len(secret.text) < SHORT_SECRET:
                name = ref.env or "the secret"
                self.places.warn(
                    (*self.text.path, *at), f"{name} has fewer than {SHORT_SECRET} characters and can be guessed"
                )
            found.append(secret)
        return found

    # -- the closed families -------------------------------------------------------------------------------------------

    def _verifiers(self, doc: SourceDoc) -> tuple[Verifier, ...]:
        shared = self._secrets(doc.secrets, ("secrets",))
        entries: list[tuple[Path, EntryDoc]] = [(("auth",), doc.auth)]
        if doc.auth.any_of is not None:
            entries = [(("auth", "any_of", index), entry) for index, entry in enumerate(doc.auth.any_of)]
        names = {entry.name for _, entry in entries}
        for index, name in enumerate(doc.auth.enable):
            if name not in names:
                self.complain(("auth", "enable", index), f'there is no verifier named "{name}" to enable')
        used = [(at, entry) for at, entry in entries if entry.enabled or entry.name in doc.auth.enable]
        prefixes = frozenset(
            entry_doc.key_prefix for _, entry in used if (entry_doc := _keyed(entry)).key_prefix and not entry_doc.key
        )
        made = []
        unserved = False
        for at, entry in used:
            own = _keyed(entry)
            if own.key is not None:
                keys = self._secrets(own.key, (*at, entry.kind() or "", "key"))
            else:
                keys = serving(shared, own.key_prefix, prefixes, required=own.key_prefix_required)
                unserved = unserved or (not shared and doc.secrets is None)
            verifier = self._verifier(doc, at, entry, keys) if keys else None
            made += [verifier] if verifier else []
        if unserved:
            self.complain(
                (),
                "secrets: is missing; name the variable that holds the source's secret: secrets: [{env: ..._SECRET}]",
                at_key=True,
            )
        return tuple(made)

    def _verifier(self, doc: SourceDoc, at: Path, entry: EntryDoc, keys: list[Secret]) -> Verifier | None:
        spec = _body_spec(doc)

        def read_body(received: WebhookRequest, lookup: CompiledPath) -> str | None:
            try:
                root = decode(received.body, received.headers.get("content-type", ""), spec)
            except UnreadableBodyError:
                return None
            return text_of(lookup.find(Scope(item=root, root=root, headers=received.headers)))

        public_base = self._public_base(doc)
        if entry.signs_url() and public_base is None:
            self.complain(
                (),
                "its signature covers the address senders know: set LEADWIRE_PUBLIC_URL, "
                'or give url: {public_base: "https://hooks.example.com"}',
                at_key=True,
            )
            return None
        try:
            return compile_verifier(entry, keys, url=doc.url, public_base=public_base, read_body=read_body)
        except ValueError as fault:
            own = _keyed(entry).key is not None
            self.complain((*at, entry.kind() or "", "key") if own else ("secrets",), str(fault))
            return None

    def _handshakes(self, doc: SourceDoc) -> Handshakes:
        unsigned: list[GetEcho | Options] = []
        signed: list[Challenge | Ignore] = []
        for index, one in enumerate(doc.handshake):
            if one.get_echo:
                tokens = self._secrets(doc.verify_token, ("verify_token",))
                if doc.verify_token is None:
                    self.complain(
                        ("handshake", index, "get_echo"),
                        "needs the token that was agreed with the sender: verify_token: {env: ..._VERIFY_TOKEN}",
                    )
                echo = one.get_echo
                unsigned.append(
                    GetEcho(
                        param=echo.param,
                        token_param=echo.token_param,
                        expect=echo.expect,
                        tokens=tuple(token.text.encode() for token in tokens),
                    )
                )
            elif one.options:
                unsigned.append(Options(rate=one.options.rate))
            else:
                signed.append(_signed_question(one))
        return Handshakes(unsigned=tuple(unsigned), signed=tuple(signed))

    def _public_base(self, doc: SourceDoc) -> str | None:
        base = doc.url.public_base or self.public_url
        return base.rstrip("/") if base else None

    def _warn(self, doc: SourceDoc, paths: EventPaths) -> None:
        if doc.event.id is None and doc.event.dedupe is None:
            self.places.warn(
                (*self.text.path, "event"),
                "names neither id nor dedupe: an event is recognised by its content, and for ten minutes only",
            )
        elif not paths.id_is_signed:
            self.places.warn(
                (*self.text.path, "event", "id"),
                "this header is not covered by the signature: events are recognised by their content instead",
            )


def _signed_question(doc: HandshakeDoc) -> Challenge | Ignore:
    if doc.json_challenge:
        ask = doc.json_challenge
        return Challenge(match=ask.match, value=ask.answer, as_json=ask.respond == "json")
    assert doc.ignore is not None  # exactly one of the four
    return Ignore(match=doc.ignore.match)


def _keyed(entry: EntryDoc) -> Keyed:
    doc: Keyed = getattr(entry, entry.kind() or "")
    return doc


def _body_spec(doc: SourceDoc) -> BodySpec:
    body = doc.body
    return BodySpec(
        format=body.format, charset=body.charset, fields_limit=body.fields_limit, json_field=body.json_field
    )


def _event_paths(name: str, doc: SourceDoc, signed_headers: frozenset[tuple[str, ...]] | None) -> EventPaths:
    event: EventDoc = doc.event
    return EventPaths(
        source=name,
        type=event.type,
        types=event.map,
        id=event.id,
        dedupe=event.dedupe,
        occurred_at=event.occurred_at,
        subject_kind=event.subject.kind if event.subject else None,
        subject_id=event.subject.id if event.subject else None,
        changed=_changed(event),
        attempt=event.attempt,
        contact=_contact(doc.contact),
        data=doc.data,
        region=doc.region,
        signed_headers=signed_headers,
    )


def _changed(event: EventDoc) -> Changed | None:
    doc = event.changed
    return Changed(field=doc.field, fields=doc.fields, before=doc.before, after=doc.after) if doc else None


def _contact(doc: ContactDoc) -> ContactPaths:
    return ContactPaths(**{name: getattr(doc, name) for name in ContactDoc.model_fields})


def _covered(verifiers: Sequence[Verifier]) -> frozenset[tuple[str, ...]] | None:
    """Return the headers that every signature covers; None when no verifier is a signature."""
    covers = [verifier.proof.covers for verifier in verifiers if isinstance(verifier.proof, Signature)]
    return frozenset.intersection(*covers) if covers else None


def _token_paths(doc: SourceDoc) -> list[Steps]:
    entries = [doc.auth, *(doc.auth.any_of or [])]
    return [parse_payload_path(entry.body_token.path) for entry in entries if entry.body_token]


def _read_headers(doc: SourceDoc) -> frozenset[str]:
    """Return the headers an event is made from: they are stored with it, so that it can be read again."""
    event, contact = doc.event, doc.contact
    lookups = [event.type, event.id, event.attempt, event.occurred_at.path if event.occurred_at else None, doc.data]
    lookups += [getattr(contact, name) for name in ContactDoc.model_fields]
    lookups += [*(event.dedupe.paths if event.dedupe else ()), event.subject.id if event.subject else None]
    entries = [doc.auth, *(doc.auth.any_of or [])]
    stamps = {name for entry in entries if entry.timestamp for name in entry.timestamp.header or ()}
    return headers_read(*lookups) | stamps
